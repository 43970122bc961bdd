"""The engine's view of the gate: agreements, policy, signatures and the journal behind `ports.Gateway`."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import trio

from comity.agreement import Agreed
from comity.errors import AgreementError, AgreementStopped, Busy
from comity.trust import Attested
from comity_node.admission.tokens import Denied, Leaving, TokenGate
from comity_node.protocol.token import Key, Token
from comity_node.runtime.agreements import Agreements
from comity_node.runtime.passing.ports import Outgoing, Pacts, Refusal
from comity_node.storage import journeys
from comity_node.storage import tokens as custody

#: Tokens of which it is remembered under which policy they passed; of a forgotten one the policy is asked again.
_PASSED_KEPT = 65_536
#: (organization, agreement, role) of which it is remembered that tokens of it wait.
_WAITS_KEPT = 1_024
#: Tokens that were decided on as they were put out; a forgotten one is decided on once more.
_DECIDED_KEPT = 65_536
#: How soon a token is tried again whose agreement is suspended, here or at the other side.
_SUSPENDED_S = 5.0


#: Puts tokens of these places out in a transaction: each as the gate has let it pass, None: it has not.
PutOut = Callable[[sqlite3.Connection, Sequence[tuple[int, Token | None]]], None]


class Caller(str):
    """The name of an organization, and its node that the link has attested: who brings tokens."""

    __slots__ = ("attested",)
    attested: Attested

    @classmethod
    def of(cls, attested: Attested) -> Self:
        """Return the caller that a link has attested."""
        caller = cls(attested.organization)
        caller.attested = attested
        return caller


class Versioned(Protocol):
    """Tells when what was decided has to be looked at again (`recheck.Recheck`)."""

    @property
    def version(self) -> int:
        """Grows with each change that answers of before do not know of."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """A token that passed once and may not leave now; `retry_after_s` over 0: it may perhaps leave then."""

    reason: str
    retry_after_s: float = 0.0


class TokenGateway:
    """Lets tokens pass (`ports.Gateway`)."""

    def __init__(self, gate: TokenGate, agreements: Agreements, pacts: Pacts, recheck: Versioned) -> None:
        """Have `gate` decide about tokens under `agreements`; `recheck` says when to ask again."""
        self._gate = gate
        self._agreements = agreements
        self._pacts = pacts
        self._recheck = recheck
        self._me = gate.identity.organization
        self._passed: dict[Key, int] = {}
        self._waits: dict[tuple[str, bytes, str], tuple[float, int, Refusal]] = {}
        self._decided: dict[Key, tuple[Outgoing, Token | Refusal]] = {}

    async def leave(self, to: str, rows: Sequence[Outgoing]) -> Sequence[Token | Refusal]:
        """Let tokens for `to` pass, or refuse them; what passed is in its outgoing row when this returns."""
        before = [self._decided.get(row.token.key) for row in rows]
        out = [kept[1] if kept is not None and kept[0] is row else None for kept, row in zip(before, rows, strict=True)]
        new = [row for row, came in zip(rows, out, strict=True) if came is None]
        decided = iter(await self._decide(to, new) if new else ())
        self.let_go([row.token.key for row in rows])  # only now: else those would be counted twice if these fail
        return [next(decided) if came is None else came for came in out]

    async def put_out(self, to: str, rows: Sequence[Outgoing], put: PutOut) -> set[int]:
        """Decide on tokens for `to` in the transaction in which `put` puts them out; `leave` knows the answers then.

        Returns:
            The places of those that `put` was called for. The others are not put out: nothing is asked about them now.

        Raises:
            StorageError: some are not put out; those that are have their answers.
        """
        before = [self._decided.get(row.token.key) for row in rows]
        there = {at for at, kept in enumerate(before) if kept is not None and kept[0] is rows[at]}
        new = [at for at in range(len(rows)) if at not in there]
        for alike in _alike([rows[at] for at in new]).values():
            there |= await self._put_out(to, rows, [new[at] for at in alike], put)
        return there

    async def _put_out(self, to: str, rows: Sequence[Outgoing], alike: Sequence[int], put: PutOut) -> set[int]:
        there: set[int] = set()

        def note(connection: sqlite3.Connection, passed: Sequence[tuple[int, Token | None]]) -> None:
            put(connection, [(alike[at], token) for at, token in passed])
            there.update(alike)

        came = await self._decide(to, [rows[at] for at in alike], note)
        for place, answer in zip(alike, came, strict=True):
            if place in there:
                if len(self._decided) >= _DECIDED_KEPT:
                    self._decided.clear()
                self._decided[rows[place].token.key] = rows[place], answer
        return there

    def let_go(self, keys: Sequence[Key]) -> None:
        """Forget what was decided on tokens that do not leave after all."""
        for key in keys:
            self._decided.pop(key, None)

    async def _decide(self, to: str, rows: Sequence[Outgoing], put: PutOut | None = None) -> list[Token | Refusal]:
        out: list[Token | Refusal] = [Refusal("no such agreement runs here now")] * len(rows)
        for (digest, role), places in _alike(rows).items():
            version = self._recheck.version
            if (wait := self._must_wait(to, digest, role, version)) is not None:
                came: Sequence[Token | Refusal] = [wait] * len(places)
            else:
                came = await self._leave(digest, to, rows, places, put)
                self._note_waits(to, digest, role, version, came)
            for place, passed in zip(places, came, strict=True):
                out[place] = passed
                if isinstance(passed, Token):
                    self._note(passed.key, version)
        return out

    def _must_wait(self, to: str, digest: bytes, role: str, version: int) -> Refusal | None:
        """Return the answer of a moment ago to tokens alike that had to wait, while they still have to."""
        said = self._waits.get((to, digest, role))
        if said is None:
            return None
        until_s, of_version, refusal = said
        left_s = until_s - trio.current_time()
        if left_s <= 0 or of_version != version:
            del self._waits[to, digest, role]
            return None
        return Refusal(refusal.reason, left_s)

    def _note_waits(
        self, to: str, digest: bytes, role: str, version: int, came: Sequence[Token | Refusal]
    ) -> None:  # fmt: skip
        """Have all tokens alike wait as long as one: each is not asked about, and written down, by itself."""
        refusal = next((one for one in came if isinstance(one, Refusal) and one.retry_after_s), None)
        if refusal is not None:
            if len(self._waits) >= _WAITS_KEPT:
                self._waits.clear()
            self._waits[to, digest, role] = trio.current_time() + refusal.retry_after_s, version, refusal

    async def _leave(
        self, digest: bytes, to: str, rows: Sequence[Outgoing], places: Sequence[int], put: PutOut | None
    ) -> Sequence[Token | Refusal]:
        pact = self._pacts.pact(digest)
        try:
            agreed = self._agreements.get(digest)
        except (AgreementError, Busy) as error:
            return [Refusal(str(error), self._again_s(digest, error))] * len(places)
        if pact is None or to not in agreed.participants:
            return [Refusal("no such agreement runs with them now")] * len(places)
        leaving = [Leaving(rows[at].token, rows[at].role) for at in places]

        def keep(connection: sqlite3.Connection, came: Sequence[Token | Denied]) -> None:
            passed = [None if isinstance(one, Denied) else one for one in came]
            if put is not None:
                put(connection, list(zip(places, passed, strict=True)))
            else:
                keys = [rows[at].token.key for at in places]
                custody.set_passed(connection, list(zip(keys, passed, strict=True)))
            gone = (one.token for one, token in zip(leaving, passed, strict=True) if token is not None)
            journeys.keep_ways(connection, [token for token in gone if token.home == self._me and token.hops])

        came = await self._gate.out(agreed, pact.flow, to, leaving, keep)
        return [Refusal(one.reason, one.retry_after_s) if isinstance(one, Denied) else one for one in came]

    def _again_s(self, digest: bytes, error: AgreementError | Busy) -> float:
        """Return after how many seconds an agreement under which nothing may happen now may be in force; 0: never."""
        if isinstance(error, Busy):
            return max(_SUSPENDED_S, error.retry_after_ms / 1000)
        return 0.0 if self._agreements.is_over(digest) else _SUSPENDED_S

    def _note(self, key: Key, version: int) -> None:
        if len(self._passed) >= _PASSED_KEPT:
            self._passed.clear()
        self._passed[key] = version

    def check_again(self, to: str, rows: Sequence[Outgoing]) -> Mapping[int, Stopped]:
        """Look again at tokens that passed before the policy, the trust bundle or an agreement changed (S1).

        Returns:
            Those that may not leave now, by their place in `rows`. Nothing is counted or written down by this.
        """
        version = self._recheck.version
        stopped: dict[int, Stopped] = {}
        for place, row in enumerate(rows):
            key = row.token.key
            if self._passed.get(key, -1) >= version:
                continue
            if (why := self._why_not(to, row)) is not None:
                stopped[place] = why
            else:
                self._note(key, version)
        return stopped

    def _why_not(self, to: str, row: Outgoing) -> Stopped | None:
        digest = row.token.agreement
        found, pact = self._find(digest), self._pacts.pact(digest)
        if isinstance(found, Refusal):
            return Stopped(found.reason, found.retry_after_s)
        if pact is None:
            return Stopped("no such agreement runs here now")
        reason = self._gate.why_not_now(found, pact.flow, row.passed or row.token, to, row.role)
        return Stopped(reason) if reason else None

    def awaits(self, digest: bytes) -> bool:
        """Whether an agreement is not known here: its conclusion may still be on its way."""
        try:
            self._agreements.get(digest)
        except (AgreementStopped, Busy):
            return False
        except AgreementError:
            return True
        return False

    def _find(self, digest: bytes) -> Agreed | Refusal:
        try:
            return self._agreements.get(digest)
        except (AgreementError, Busy) as error:
            return Refusal("no such agreement runs here now", self._again_s(digest, error))

    def delivered(self, keys: Sequence[Key]) -> None:
        """Forget tokens that somebody else has."""
        for key in keys:
            self._passed.pop(key, None)

    async def arrive(self, sender: str, tokens: Sequence[Token]) -> Sequence[Refusal | None]:
        """Let tokens of `sender`, who is a `Caller`, in, or refuse them."""
        assert isinstance(sender, Caller), "tokens come from an attested node"
        out: list[Refusal | None] = [Refusal("no such agreement runs here now")] * len(tokens)
        for digest, places in _by_agreement(tokens).items():
            pact, found = self._pacts.pact(digest), self._find(digest)
            if isinstance(found, Refusal):
                for place in places:
                    out[place] = found
                continue
            if pact is None:
                continue
            came = await self._gate.arrive(found, pact.flow, sender.attested, [tokens[at] for at in places])
            for place, denied in zip(places, came, strict=True):
                out[place] = None if denied is None else Refusal(denied.reason, denied.retry_after_s)
        return out


def _alike(rows: Sequence[Outgoing]) -> dict[tuple[bytes, str], list[int]]:
    groups: dict[tuple[bytes, str], list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault((row.token.agreement, row.role), []).append(place)
    return groups


def _by_agreement(tokens: Sequence[Token]) -> dict[bytes, list[int]]:
    groups: dict[bytes, list[int]] = {}
    for place, token in enumerate(tokens):
        groups.setdefault(token.agreement, []).append(place)
    return groups
