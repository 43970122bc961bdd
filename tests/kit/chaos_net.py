"""What connects the members of a world of faults: links that break, and messages that are lost, doubled and damaged."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

import trio

from comity.envelope import MESSAGE_KINDS, open_document, open_message
from comity.errors import ComityError, LinkClosed, PeerRefused, PeerUnreachable
from comity.trust import Attested
from comity.v1.task_pb2 import Receipt, Review, ReviewDelivery
from kit.chaos_member import Member
from kit.chaos_plan import ALL, OF_MESSAGES, Fault, Kind, On, Plan
from kit.consortium import attested

#: Milliseconds on the way, each way.
_WAY_MS = (2, 30)
_LATE_MS = (500, 8_000)
#: Seconds until a stream that has lost something is reset, and until a link is found dead that carries nothing.
_RESET_S = 1.5
DETECT_S = 3.0
#: Old messages that are kept for a replay, of each pair.
_KEPT = 64


@dataclass(slots=True)
class Left:
    """A message that has left its sender.

    Attributes:
        sender: whose it was.
        receiver: for whom it was.
        kind: of message.
        body: what it says.
        audited: entries of the sender's audit log on its disk at that moment.
        acknowledged: whether the sender was told that it is on the disk of its recipient.
    """

    sender: str
    receiver: str
    kind: str
    body: bytes
    audited: int
    acknowledged: bool = False

    @property
    def revision(self) -> int:
        """Which revision votes are about."""
        (first, *_) = ReviewDelivery.FromString(self.body).reviews
        return Review.FromString(open_document(first.review, "review").body).revision


class Wire:
    """The links between all members."""

    def __init__(self, plan: Plan, members: Mapping[str, Member], since_ms: Callable[[], int]) -> None:
        """Carry messages as `plan` says; `since_ms` is the world's time."""
        self._plan = plan
        self._members = members
        self._since_ms = since_ms
        self._in_flight: defaultdict[frozenset[str], set[trio.CancelScope]] = defaultdict(set)
        self._counts: Counter[tuple[str, str]] = Counter()
        self._old: defaultdict[tuple[str, str], list[bytes]] = defaultdict(list)
        #: Pairs that hear nothing of each other, and those of them that have noticed it.
        self.silent: Counter[frozenset[str]] = Counter()
        self.cut: set[frozenset[str]] = set()
        self.left: list[Left] = []
        self.hit: Counter[str] = Counter()

    # -- links -----------------------------------------------------------------------------------------------------

    def peer(self, me: Member, organization: str) -> Attested | None:
        other = self._members.get(organization)
        return attested(other.identity) if other is not None and self._linked(me, other) else None

    def _linked(self, one: Member, other: Member) -> bool:
        return one.alive and other.alive and frozenset({one.name, other.name}) not in self.cut

    def drop(self, pair: frozenset[str]) -> None:
        """Break the link of a pair: whoever waits for an answer is told."""
        for scope in tuple(self._in_flight[pair]):
            scope.cancel()

    def drop_all(self, member: Member) -> None:
        """Break every link of a member."""
        for name in self._members:
            self.drop(frozenset({member.name, name}))

    def relink(self, one: Member) -> None:
        """Let those whom a member is linked with know: links have come up."""
        for other in self._members.values():
            if other is not one and self._linked(one, other):
                for each, organization in ((one, other.name), (other, one.name)):
                    if each.node is not None:
                        each.node.runtime.directory.look_again()
                        each.node.runtime.outbox.kick(organization)

    # -- messages --------------------------------------------------------------------------------------------------

    async def request(self, me: Member, peer_id: str, payload: bytes, deadline_s: float) -> bytes:
        await trio.lowlevel.checkpoint()
        other = next(each for each in self._members.values() if each.identity.peer_id == peer_id)
        if not self._linked(me, other):
            raise PeerUnreachable(f"{other.name} is not linked")
        waiting = self._in_flight[frozenset({me.name, other.name})]
        with trio.move_on_after(deadline_s) as scope:
            waiting.add(scope)
            try:
                return await self._carry(me, other, payload)
            finally:
                waiting.discard(scope)
        raise LinkClosed(f"the link to {other.name} went down, or it did not answer in time")

    async def _carry(self, me: Member, other: Member, payload: bytes) -> bytes:
        pair = (me.name, other.name)
        number = self._counts[pair]
        self._counts[pair] += 1
        draws = Random(f"{self._plan.seed} {pair} {number}")
        fates = self._fates(me, other, draws)
        if Kind.REPLAY in fates and self._old[pair]:
            self._again(me, other, draws.choice(self._old[pair]), 0.0)
        self._old[pair] = [*self._old[pair], payload][-_KEPT:]
        left = self._leaves(me, other, payload)
        await self._travel(me, other, draws, late=Kind.LATE in fates)
        if Kind.LOSE in fates:
            await self._lost()
        if Kind.TWICE in fates:
            self._again(me, other, payload, draws.uniform(0, 2))
        answer = await self._serve(me, other, _damaged(payload, draws) if Kind.DAMAGE in fates else payload)
        if Kind.LOSE_ANSWER in fates:
            await self._lost()
        await self._travel(other, me, draws)
        if Kind.DAMAGE_ANSWER in fates:
            return _damaged(answer, draws)
        if me.alive:
            receipt = Receipt.FromString(open_message(answer, {"receipt"}).body)
            left.acknowledged = receipt.status == Receipt.STATUS_ACCEPTED
        return answer

    def _fates(self, me: Member, other: Member, draws: Random) -> set[Kind]:
        now = self._since_ms()
        fates = set()
        for fault in self._plan.faults:
            if fault.kind in OF_MESSAGES and _is_hit(fault, me, other, now) and draws.random() * 1000 < fault.amount:
                fates.add(fault.kind)
                self.hit[fault.kind] += 1
        return fates

    async def _travel(self, one: Member, other: Member, draws: Random, *, late: bool = False) -> None:
        await one.when_thawed()
        await trio.sleep(draws.uniform(*(_LATE_MS if late else _WAY_MS)) / 1000)
        if self.silent[frozenset({one.name, other.name})]:
            await trio.sleep_forever()  # until the deadline, or until the link is found dead
        await other.when_thawed()

    async def _lost(self) -> None:
        await trio.sleep(_RESET_S)
        raise LinkClosed("the stream was reset")

    def _again(self, me: Member, other: Member, payload: bytes, after_s: float) -> None:
        """Have a message come once more, whatever becomes of it."""
        node = other.node
        if node is None or node.scope.cancel_called:
            return

        async def again() -> None:
            await trio.sleep(after_s)
            try:
                await node.runtime.messenger.receive(attested(me.identity), payload)
            except ComityError:  # as it should be: it was good once
                self.hit["refused again"] += 1

        node.nursery.start_soon(again)

    async def _serve(self, me: Member, other: Member, payload: bytes) -> bytes:
        node = other.node
        if node is None:
            raise LinkClosed(f"{other.name} went down")

        async def serve() -> bytes:
            other.happens(other, On.RECEIVED)
            await trio.lowlevel.checkpoint()  # where a kill is met
            answer = await node.runtime.messenger.receive(attested(me.identity), payload)
            other.happens(other, On.ANSWERED)
            await trio.lowlevel.checkpoint()
            return answer

        try:
            return await node.within(serve)
        except LinkClosed:
            raise
        except ComityError as error:
            raise PeerRefused(f"the peer answered {error.code}: {error}", remote_code=error.code) from None

    def _leaves(self, me: Member, other: Member, payload: bytes) -> Left:
        message = open_message(payload, MESSAGE_KINDS)
        audited = sum(size for (size,) in me.rows("SELECT size FROM audit_head"))
        left = Left(me.name, other.name, message.kind, message.body, audited)
        self.left.append(left)
        return left


def _is_hit(fault: Fault, me: Member, other: Member, now_ms: int) -> bool:
    to = fault.other in (ALL, other.number)
    return fault.who == me.number and to and fault.at <= now_ms < fault.at + fault.for_ms


def _damaged(data: bytes, draws: Random) -> bytes:
    """Return data with one bit, or its end, gone."""
    place = draws.randrange(len(data))
    if draws.random() < 0.2:
        return data[:place]
    return data[:place] + bytes([data[place] ^ 1 << draws.randrange(8)]) + data[place + 1 :]
