"""What is kept of the news: cards and hints, bounded for each node and each organization.

Nothing of one organization ever displaces what another has said: an organization that has used up its place gets no
more of it until something of its own expires.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from google.protobuf.message import DecodeError

from comity.card import AgentCard
from comity.errors import InvalidName, UnexpectedMessage
from comity.ids import organization_name
from comity.v1.news_pb2 import ReliabilityHint, ReliabilityNews

#: `Hint.mean` and `Hint.weight` are shares of it.
HINT_SCALE = 10_000
#: Roles that hints can be about.
HINT_ROLES = frozenset({"generator", "reviewer"})
_MAX_COUNT = 2**53 - 1


@dataclass(frozen=True, slots=True)
class NewsSettings:
    """Bounds and times of the news.

    Attributes:
        repeat_s: between two rounds of repeating, on average.
        heard_s: what was passed on is not passed on again for so long; less than half of `repeat_s`.
        nodes: of one organization, whose news is kept.
        node_cards: cards of one node.
        organization_bytes: of one organization's cards.
        hints: in one message.
        hint_lifetime_ms: the longest that hints hold.
        revocations: of one organization.
        heard: contents that are remembered as passed on.
        authors: authors whose rate is remembered.
        author_per_s: cards and hints a second of one author. (Revocations are limited by there being so many.)
        author_burst: of them, at once after a quiet time.
        skew_ms: how far clocks may be apart.
    """

    repeat_s: float = 600.0
    heard_s: float = 240.0
    nodes: int = 8
    node_cards: int = 32
    organization_bytes: int = 1024 * 1024
    hints: int = 256
    hint_lifetime_ms: int = 24 * 3600 * 1000
    revocations: int = 1024
    heard: int = 8192
    authors: int = 4096
    author_per_s: float = 1.0
    author_burst: float = 64.0
    skew_ms: int = 30_000


class Standing(Enum):
    """How something fits with what is there."""

    NEW = auto()
    #: It is there, or something newer is.
    KNOWN = auto()
    #: Its organization has used up its place.
    FULL = auto()


@dataclass(frozen=True, slots=True)
class _Card:
    card: AgentCard
    digest: bytes
    size: int


class CardStore:
    """The newest card of each agent at each node."""

    def __init__(self, settings: NewsSettings) -> None:
        self._settings = settings
        self._shelves: dict[str, dict[tuple[str, str], _Card]] = {}

    def __len__(self) -> int:
        return sum(len(shelf) for shelf in self._shelves.values())

    def __iter__(self) -> Iterator[AgentCard]:
        return iter([entry.card for shelf in self._shelves.values() for entry in shelf.values()])

    def add(self, card: AgentCard, digest: bytes, size: int, now_ms: int) -> Standing:
        """Keep a verified card if it is newer than what is there.

        Args:
            card: the card.
            digest: SHA-256 of its signed form; of two that were issued at once, the higher wins everywhere.
            size: of its signed form, in bytes.
            now_ms: the time.
        """
        shelf = self._shelves.setdefault(card.organization, {})
        key = card.peer_id, str(card.agent)
        known = shelf.get(key)
        if known is not None and (known.card.issued_ms, known.digest) >= (card.issued_ms, digest):
            return Standing.KNOWN
        for old in [old for old, entry in shelf.items() if entry.card.expires_ms <= now_ms]:
            del shelf[old]
        others = {other: entry for other, entry in shelf.items() if other != key}
        nodes = {peer for peer, _ in others} | {card.peer_id}
        if (
            len(nodes) > self._settings.nodes
            or sum(peer == card.peer_id for peer, _ in others) >= self._settings.node_cards
            or sum(entry.size for entry in others.values()) + size > self._settings.organization_bytes
        ):
            return Standing.FULL
        shelf[key] = _Card(card, digest, size)
        return Standing.NEW

    def expire(self, now_ms: int) -> None:
        """Forget cards that are no longer good."""
        for organization, shelf in list(self._shelves.items()):
            kept = {key: entry for key, entry in shelf.items() if entry.card.expires_ms > now_ms}
            if kept:
                self._shelves[organization] = kept
            else:
                del self._shelves[organization]


@dataclass(frozen=True, slots=True)
class Hint:
    """What a node has learned about an organization in a role.

    Attributes:
        organization: whom it is about.
        role: "generator" or "reviewer".
        agreed_milli: outcomes that agreed with the certificates, in thousandths.
        disagreed_milli: outcomes that did not.
        mean: what the author draws from them, 0 to `HINT_SCALE`.
        weight: how much the author would have it count, 0 to `HINT_SCALE`.
    """

    organization: str
    role: str
    agreed_milli: int
    disagreed_milli: int
    mean: int
    weight: int


@dataclass(frozen=True, slots=True)
class HintNews:
    """Hints as one message has them; nothing of it is verified yet.

    Attributes:
        consortium: for which it is meant.
        chain: the author's certificates, DER, its own first.
        issued_ms: milliseconds since the Unix epoch.
        expires_ms: milliseconds since the Unix epoch.
        hints: each organization and role once.
    """

    consortium: str
    chain: tuple[bytes, ...]
    issued_ms: int
    expires_ms: int
    hints: tuple[Hint, ...]

    def encode(self) -> bytes:
        """Return the payload of the message."""
        return ReliabilityNews(
            consortium=self.consortium,
            chain=self.chain,
            issued_ms=self.issued_ms,
            expires_ms=self.expires_ms,
            hints=[
                ReliabilityHint(
                    organization=hint.organization,
                    role=hint.role,
                    agreed_milli=hint.agreed_milli,
                    disagreed_milli=hint.disagreed_milli,
                    mean=hint.mean,
                    weight=hint.weight,
                )
                for hint in self.hints
            ],
        ).SerializeToString()

    @classmethod
    def decode(cls, data: bytes, settings: NewsSettings) -> HintNews:
        """Read the payload of a message.

        Raises:
            UnexpectedMessage: it is malformed, or breaks a limit; the message says which.
        """
        try:
            wire = ReliabilityNews.FromString(data)
        except DecodeError as error:
            raise UnexpectedMessage("hints that do not parse") from error
        if not 1 <= len(wire.hints) <= settings.hints:
            raise UnexpectedMessage(f"a message has from 1 to {settings.hints} hints")
        if not 0 < wire.expires_ms - wire.issued_ms <= settings.hint_lifetime_ms:
            raise UnexpectedMessage(f"hints hold for {settings.hint_lifetime_ms} ms at most")
        hints = tuple(_read_hint(one) for one in wire.hints)
        if len({(hint.organization, hint.role) for hint in hints}) != len(hints):
            raise UnexpectedMessage("two hints at one organization in one role")
        return cls(wire.consortium, tuple(wire.chain), wire.issued_ms, wire.expires_ms, hints)


def _read_hint(wire: ReliabilityHint) -> Hint:
    try:
        organization_name(wire.organization)
    except InvalidName as error:
        raise UnexpectedMessage(f"a hint at nobody: {error}") from error
    if wire.role not in HINT_ROLES or max(wire.mean, wire.weight) > HINT_SCALE:
        raise UnexpectedMessage(f"a hint has one of the roles {sorted(HINT_ROLES)} and shares up to {HINT_SCALE}")
    if max(wire.agreed_milli, wire.disagreed_milli) > _MAX_COUNT:
        raise UnexpectedMessage("a hint's counts are below 2^53")
    return Hint(wire.organization, wire.role, wire.agreed_milli, wire.disagreed_milli, wire.mean, wire.weight)


class HintStore:
    """The newest hints of each node."""

    def __init__(self, settings: NewsSettings) -> None:
        self._settings = settings
        self._shelves: dict[str, dict[str, HintNews]] = {}

    def __len__(self) -> int:
        return sum(len(shelf) for shelf in self._shelves.values())

    def add(self, organization: str, author: str, news: HintNews, now_ms: int) -> Standing:
        """Keep the hints of an organization's node if they are newer than what is there."""
        shelf = self._shelves.setdefault(organization, {})
        known = shelf.get(author)
        if known is not None and known.issued_ms >= news.issued_ms:
            return Standing.KNOWN
        for old in [old for old, entry in shelf.items() if entry.expires_ms <= now_ms]:
            del shelf[old]
        if author not in shelf and len(shelf) >= self._settings.nodes:
            return Standing.FULL
        shelf[author] = news
        return Standing.NEW

    def about(self, organization: str, now_ms: int) -> Sequence[tuple[str, Hint]]:
        """Return what others say of an organization: who says it, and what."""
        return [
            (author, hint)
            for author, shelf in self._shelves.items()
            for news in shelf.values()
            if news.issued_ms <= now_ms + self._settings.skew_ms and news.expires_ms > now_ms
            for hint in news.hints
            if hint.organization == organization
        ]

    def expire(self, now_ms: int) -> None:
        """Forget hints that no longer hold."""
        for organization, shelf in list(self._shelves.items()):
            kept = {author: news for author, news in shelf.items() if news.expires_ms > now_ms}
            if kept:
                self._shelves[organization] = kept
            else:
                del self._shelves[organization]


class Heard:
    """What was passed on lately, by digest; a full table forgets what was heard longest ago."""

    def __init__(self, settings: NewsSettings) -> None:
        self._most, self._ms = settings.heard, round(settings.heard_s * 1000)
        self._until: OrderedDict[bytes, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._until)

    def note(self, digest: bytes, now_ms: int) -> bool:
        """Remember that it was heard, and say whether that is news."""
        is_news = self._until.get(digest, 0) <= now_ms
        if is_news:
            self._until[digest] = now_ms + self._ms
            self._until.move_to_end(digest)
            if len(self._until) > self._most:
                self._until.popitem(last=False)
        return is_news
