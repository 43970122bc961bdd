"""What a consortium gossips: agent cards, hints at reliability, evidence of lies, and revocations of certificates.

Each kind has its topic, `comity/<consortium>/cards|reliability|evidence|revocations`, and its rules. A message is
judged before it is forwarded: what any honest node must refuse is rejected, and held against who sent it; what depends
on the time or on what we have already is ignored.

- *cards*: a signed agent card (A2A JWS, `comity.card`), of a member, and from its own node only (S5). The newest by
  time of issue wins.
- *reliability*: what a node of a member has learned about *other* members, as integers, for a bounded time. It is
  advice: no hint moves anything by itself.
- *evidence*: `comity.evidence`, from whomever: two documents that no honest organization signs both. It takes effect
  before it is forwarded; what does not verify moves nothing.
- *revocations*: `comity.revocation`, from whomever: its organization's CA has signed it. It never goes away, and it
  takes effect before it is forwarded.

Nodes repeat their own cards and hints, made anew, and the revocations that they know and have not heard lately: so
whoever comes late learns everything within one round, and a revocation outlives the nodes of its organization.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import trio

from comity.card import IDENTITY_EXTENSION, MAX_CARD, AgentCard, open_card
from comity.digest import sha256
from comity.errors import (
    CertificateInvalid,
    ChainInvalid,
    ComityError,
    EnvelopeError,
    RevocationInvalid,
    TrustError,
    UnexpectedMessage,
)
from comity.evidence import Proven, verify_evidence
from comity.revocation import Revocation, RevocationList, verify_revocation
from comity.strictjson import MAX_INTEGER, Fields, parse_json
from comity.trust import Attested, NodeIdentity, TrustStore
from comity_node.discovery.news_store import CardStore, Heard, Hint, HintNews, HintStore, NewsSettings, Standing
from comity_node.discovery.pubsub import PubSub, Randomness, Received, Verdict
from comity_node.protocol.gossip_tables import Bucket

if TYPE_CHECKING:
    from trio_typing import TaskStatus

__all__ = ["Hint", "News", "NewsSettings", "topic"]

_log = logging.getLogger("comity.news")
#: Of revocations for which there is no room, the first of so many is told of.
_SAY_EVERY = 1000
_VERDICTS = {Standing.NEW: Verdict.ACCEPT, Standing.KNOWN: Verdict.IGNORE, Standing.FULL: Verdict.IGNORE}


def topic(consortium: str, kind: str) -> str:
    """Return the name of a topic of a consortium's news."""
    return f"comity/{consortium}/{kind}"


async def _nothing() -> Sequence[Hint]:
    await trio.lowlevel.checkpoint()
    return ()


async def _no_evidence() -> Sequence[bytes]:
    await trio.lowlevel.checkpoint()
    return ()


class News:
    """Spreads a node's news, and keeps that of others."""

    def __init__(
        self,
        pubsub: PubSub,
        identity: NodeIdentity,
        trust: TrustStore,
        *,
        now_ms: Callable[[], int],
        random: Randomness,
        own_cards: Callable[[], Awaitable[Sequence[bytes]]],
        own_hints: Callable[[], Awaitable[Sequence[Hint]]] = _nothing,
        own_evidence: Callable[[], Awaitable[Sequence[bytes]]] = _no_evidence,
        on_card: Callable[[AgentCard], None] = lambda _: None,
        on_evidence: Callable[[Proven], None] = lambda _: None,
        on_revoked: Callable[[Revocation], None],
        settings: NewsSettings | None = None,
    ) -> None:
        """Make the news; `run` starts it.

        Args:
            pubsub: what carries it.
            identity: the node's own.
            trust: the consortium; its name is in the topics.
            now_ms: milliseconds since the Unix epoch.
            random: a source of randomness.
            own_cards: the node's own cards, signed now.
            own_hints: what the node would tell others about others.
            own_evidence: of lies, what this node knows and may tell.
            on_card: told each new card.
            on_evidence: told each verified evidence, before it is forwarded.
            on_revoked: told each new revocation, before it is forwarded: here it takes effect, and is written down.
            settings: bounds and times.
        """
        self._pubsub, self._identity, self._trust = pubsub, identity, trust
        self._now_ms, self._random = now_ms, random
        self._own_cards, self._own_hints = own_cards, own_hints
        self._on_card, self._on_revoked = on_card, on_revoked
        self._own_evidence, self._on_evidence = own_evidence, on_evidence
        self._settings = settings or NewsSettings()
        self._cards, self._hints = CardStore(self._settings), HintStore(self._settings)
        self._revocations = RevocationList(most=self._settings.revocations)
        self._heard = Heard(self._settings)
        #: Verifies as those do who have not heard of a revocation yet: what is refused for it alone is nobody's fault.
        self._unrevoked = TrustStore(trust.bundle)
        trust.observe(lambda _, bundle: self._unrevoked.replace(bundle))
        self._authors: OrderedDict[str, Bucket] = OrderedDict()
        #: What happened, by name.
        self.counts: Counter[str] = Counter()
        consortium = trust.bundle.consortium
        self._card_topic, self._hint_topic = topic(consortium, "cards"), topic(consortium, "reliability")
        self._revocation_topic, self._evidence_topic = topic(consortium, "revocations"), topic(consortium, "evidence")

    def cards(self) -> tuple[AgentCard, ...]:
        """The cards of other nodes that are good now."""
        self._cards.expire(self._now_ms())
        return tuple(self._cards)

    def hints(self, organization: str) -> Sequence[tuple[str, Hint]]:
        """What others say of an organization now: who says it, and what. One organization may say several things."""
        return self._hints.about(organization, self._now_ms())

    def revocations(self) -> tuple[Revocation, ...]:
        """Every revocation that is known."""
        return tuple(self._revocations)

    def sizes(self) -> dict[str, int]:
        """How full the tables are."""
        return {
            "cards": len(self._cards),
            "hints": len(self._hints),
            "revocations": len(self._revocations),
            "heard": len(self._heard),
            "authors": len(self._authors),
        }

    def restore(self, revocations: Iterable[bytes]) -> None:
        """Take revocations that were written down; those that no longer verify (another bundle) are left out.

        What a root signed that has left the bundle since is in force here, and not passed on: others may not know it.
        """
        for raw in revocations:
            try:
                revocation = verify_revocation(raw, self._trust.bundle, now_ms=self._now_ms(), past=True)
                if revocation.is_of(self._trust.bundle):
                    self._revoke(revocation)
                else:
                    self._on_revoked(revocation)
            except RevocationInvalid as error:
                _log.warning("a revocation that was written down is left out: %s", error)

    async def revoke(self, raw: bytes) -> None:
        """Take a revocation of our own organization's CA (or any other), and spread it at once.

        Raises:
            RevocationInvalid: it does not verify.
        """
        self._revoke(verify_revocation(raw, self._trust.bundle, now_ms=self._now_ms()))
        self._heard.note(sha256(raw), self._now_ms())
        await self._pubsub.publish(self._revocation_topic, raw)

    async def announce(self) -> None:
        """Spread the node's cards and hints, and the revocations that were not heard lately."""
        for card in await self._own_cards():
            await self._publish(self._card_topic, card)
        if hints := [one for one in await self._own_hints() if one.organization != self._identity.organization]:
            now_ms = self._now_ms()
            lifetime_ms = min(round(3000 * self._settings.repeat_s), self._settings.hint_lifetime_ms)
            news = HintNews(
                self._trust.bundle.consortium,
                self._identity.chain,
                now_ms,
                now_ms + lifetime_ms,
                tuple(hints[: self._settings.hints]),
            )
            await self._publish(self._hint_topic, news.encode())
        for proof in await self._own_evidence():
            if self._heard.note(sha256(proof), self._now_ms()):
                await self._publish(self._evidence_topic, proof)
        known = [one for one in self._revocations if one.is_of(self._trust.bundle)]
        for revocation in self._random.sample(known, len(known)):
            if self._heard.note(sha256(revocation.raw), self._now_ms()):
                await self._publish(self._revocation_topic, revocation.raw)

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take news, and repeat ours, until cancelled."""
        self._pubsub.subscribe(self._card_topic, self._judge_card, self._tell_card)
        self._pubsub.subscribe(self._hint_topic, self._judge_hints, _done)
        self._pubsub.subscribe(self._revocation_topic, self._judge_revocation, _done)
        self._pubsub.subscribe(self._evidence_topic, self._judge_evidence, _done)
        task_status.started()
        while True:
            try:
                await self.announce()
            except ComityError as error:  # of whoever makes the cards or hints; the next round may go better
                _log.warning("the news of this node could not be spread: %s", error)
            await trio.sleep(self._settings.repeat_s * (0.5 + self._random.random()))
            self._cards.expire(self._now_ms())
            self._hints.expire(self._now_ms())

    async def _publish(self, name: str, data: bytes) -> None:
        try:
            await self._pubsub.publish(name, data)
        except ComityError as error:  # one that is too large must not keep the others back
            _log.warning("news on %s could not be spread: %s", name, error)

    async def _judge_card(self, received: Received) -> Verdict:
        await trio.lowlevel.checkpoint()
        if not self._has_turn(received.author):
            return self._count(Verdict.IGNORE, "cards.over_rate")
        now_ms = self._now_ms()
        try:
            card = open_card(received.data, self._trust, now_ms, received.author)
        except TrustError as error:
            _log.info("a card by way of %s is refused: %s", received.source, error)
            verdict = Verdict.IGNORE if self._was_good_once(received) else Verdict.REJECT
            return self._count(verdict, "cards.refused")
        standing = self._cards.add(card, sha256(received.data), len(received.data), now_ms)
        return self._count(_VERDICTS[standing], f"cards.{standing.name.lower()}")

    def _was_good_once(self, received: Received) -> bool:
        """Whether only time, or a revocation, is in the way: it may have been good where it was forwarded."""
        try:
            open_card(received.data, self._unrevoked, _issued_ms(received.data), received.author)
        except (TrustError, ValueError):
            return False
        return True

    async def _tell_card(self, received: Received) -> None:
        await trio.lowlevel.checkpoint()
        self._on_card(open_card(received.data, self._trust, self._now_ms(), received.author))

    async def _judge_hints(self, received: Received) -> Verdict:
        await trio.lowlevel.checkpoint()
        if not self._has_turn(received.author):
            return self._count(Verdict.IGNORE, "hints.over_rate")
        now_ms = self._now_ms()
        try:
            news = HintNews.decode(received.data, self._settings)
            author = self._author_of(news, received.author, now_ms)
        except (TrustError, UnexpectedMessage) as error:
            _log.info("hints by way of %s are refused: %s", received.source, error)
            return self._count(Verdict.REJECT, "hints.refused")
        if author is None or news.issued_ms > now_ms + self._settings.skew_ms or news.expires_ms <= now_ms:
            return self._count(Verdict.IGNORE, "hints.stale")
        standing = self._hints.add(author.organization, received.author, news, now_ms)
        return self._count(_VERDICTS[standing], f"hints.{standing.name.lower()}")

    def _author_of(self, news: HintNews, author: str, now_ms: int) -> Attested | None:
        """Who has signed hints; None for a node whose chain was good when it did and is not now."""
        try:
            attested = self._trust.verify_chain(news.chain, now_ms)
        except ChainInvalid:
            self._unrevoked.verify_chain(news.chain, max(news.issued_ms, 0))
            return None
        if attested.peer_id != author:
            raise UnexpectedMessage(f"the chain is that of {attested.peer_id}, but {author} has signed")
        if news.consortium != self._trust.bundle.consortium:
            raise UnexpectedMessage("hints of another consortium")
        subjects = {hint.organization for hint in news.hints}
        if attested.organization in subjects or not subjects <= set(self._trust.bundle.members):
            raise UnexpectedMessage(f"{attested.organization} may speak of the other members only")
        return attested

    async def _judge_evidence(self, received: Received) -> Verdict:
        await trio.lowlevel.checkpoint()
        if not self._has_turn(received.author):
            return self._count(Verdict.IGNORE, "evidence.over_rate")
        try:
            proven = verify_evidence(received.data, self._trust)
        except (ChainInvalid, CertificateInvalid) as error:
            # A chain may have been good where it was forwarded; two documents contradict each other or do not.
            _log.info("evidence by way of %s is refused: %s", received.source, error)
            verdict = Verdict.IGNORE if isinstance(error, ChainInvalid) else Verdict.REJECT
            return self._count(verdict, "evidence.refused")
        except (TrustError, EnvelopeError) as error:
            _log.info("evidence by way of %s is refused: %s", received.source, error)
            return self._count(Verdict.REJECT, "evidence.refused")
        if not self._heard.note(sha256(received.data), self._now_ms()):
            return self._count(Verdict.IGNORE, "evidence.known")
        self._on_evidence(proven)
        return self._count(Verdict.ACCEPT, "evidence.new")

    async def _judge_revocation(self, received: Received) -> Verdict:
        await trio.lowlevel.checkpoint()
        now_ms = self._now_ms()
        try:
            # At the end of time: whether it is from the future is a matter of clocks, and looked at below.
            revocation = verify_revocation(received.data, self._trust.bundle, now_ms=MAX_INTEGER)
        except RevocationInvalid as error:
            _log.info("a revocation by way of %s is refused: %s", received.source, error)
            return self._count(Verdict.REJECT, "revocations.refused")
        if revocation.issued_ms > now_ms + self._settings.skew_ms:
            return self._count(Verdict.IGNORE, "revocations.early")
        try:
            is_new = self._revoke(revocation)
        except RevocationInvalid as error:
            if not self.counts["revocations.full"] % _SAY_EVERY:
                _log.warning("%s", error)
            return self._count(Verdict.IGNORE, "revocations.full")
        known = self._revocations.find(revocation.fingerprint)
        if known is None or known.raw != revocation.raw:
            return self._count(Verdict.IGNORE, "revocations.weaker")
        is_news = self._heard.note(sha256(received.data), now_ms)
        name = "new" if is_new else "repeated" if is_news else "known"
        return self._count(Verdict.ACCEPT if is_new or is_news else Verdict.IGNORE, f"revocations.{name}")

    def _revoke(self, revocation: Revocation) -> bool:
        is_new = self._revocations.add(revocation)
        if is_new:
            _log.warning("%s has revoked a certificate: %s", revocation.organization, revocation.reason)
            self._on_revoked(revocation)
        return is_new

    def _has_turn(self, author: str) -> bool:
        bucket = self._authors.setdefault(author, Bucket())
        self._authors.move_to_end(author)
        if len(self._authors) > self._settings.authors:
            self._authors.popitem(last=False)
        return bucket.take(int(trio.current_time() * 1000), self._settings.author_per_s, self._settings.author_burst)

    def _count(self, verdict: Verdict, name: str) -> Verdict:
        self.counts[name] += 1
        return verdict


async def _done(_: Received) -> None:
    """All was done when it was judged."""
    await trio.lowlevel.checkpoint()


def _issued_ms(card: bytes) -> int:
    """When a card says that it was issued; nothing of it is verified.

    Raises:
        ValueError: it does not say.
    """
    fields = Fields(parse_json(card, limit=MAX_CARD), "the card")
    for one in fields.object("capabilities").array("extensions", longest=64):
        extension = Fields(one, "an extension")
        if extension.text("uri") == IDENTITY_EXTENSION:
            return extension.object("params").integer("issuedMs")
    raise ValueError("no identity extension")
