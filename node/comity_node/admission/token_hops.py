"""The hops of a token: the signed history of where a task has been, and how it is checked.

A task that leaves its home again leaves the hops there that it came back with: the home's next hop commits to them.
Whoever gets a token checks the last hop's signature against the peer that the link has attested, and the chain of
digests behind it: each hop commits to the one before, in the same attempt, one place further, with the same deadline.
Who does not get it from its home verifies every signature, with the chains of certificates that come along, and that
the first is the home's: the home of a task that comes back, and a third organization (`onward`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from comity.digest import sha256
from comity.errors import CertificateInvalid, ComityError, SignatureInvalid, TrustError
from comity.signed import Opened, head_of, leaf_of, open_signed, read_signer
from comity.trust import Attested, NodeIdentity, TrustStore
from comity.v1.flow_pb2 import FlowHop
from comity_node.protocol.token import Token
from comity_node.protocol.token_wire import HOP_KIND, content_digest, parse_hop, read_hop

__all__ = ["KIND", "HopReader", "Proof", "read_hop", "verify_journey"]

KIND: Final = HOP_KIND
#: Hops of which the content is remembered, and nodes whose chains are; about 400 bytes and 2 KiB each.
_LINKS_KEPT: Final = 16_384
_CHAINS_KEPT: Final = 4_096


class Proof(NamedTuple):
    """The last hop of a token that is sound, and where it stands in the batch that it was signed in."""

    hop: FlowHop
    head: bytes
    leaf: bytes
    place: int
    size: int


class _Link(NamedTuple):
    """What of a hop the next one has to fit."""

    previous: bytes
    after: bytes
    before: bytes
    sequence: int
    attempt: int
    task: tuple[bytes, bytes, str]
    node: str
    to: str
    at_ms: int
    deadline_ms: int
    verified: str


class HopReader:
    """Checks hops, and keeps the chains of those who sign them."""

    def __init__(self, identity: NodeIdentity, trust: TrustStore, now_ms: Callable[[], int]) -> None:
        """Check against `trust`, in the name of `identity`'s node."""
        self._identity = identity
        self._trust = trust
        #: The time, in milliseconds since the Unix epoch.
        self.now_ms = now_ms
        self._links: dict[bytes, _Link] = {}
        self._chains: dict[bytes, tuple[bytes, ...]] = {}

    # -- chains ----------------------------------------------------------------------------------------------------

    def keep(self, chains: Mapping[bytes, Sequence[bytes]]) -> None:
        """Know chains, by the key of the node of each, that were verified before."""
        self._chains.update((signer, tuple(chain)) for signer, chain in chains.items())

    def learn(self, chains: Sequence[Sequence[bytes]]) -> dict[bytes, tuple[bytes, ...]]:
        """Take chains that came with tokens, those that verify, and return the ones that are new by their keys."""
        new: dict[bytes, tuple[bytes, ...]] = {}
        now_ms = self.now_ms()
        for chain in map(tuple, chains):
            try:
                signer = self._trust.verify_chain(chain, now_ms).public_key
            except ComityError:  # whoever's hop it is for is refused, if there is one
                continue
            if self._chains.get(signer) != chain:
                new[signer] = self._chains[signer] = chain
        while len(self._chains) > _CHAINS_KEPT:
            del self._chains[next(iter(self._chains))]
        return new

    def chains_of(self, tokens: Sequence[Token], recipient: bytes) -> list[tuple[bytes, ...]]:
        """Return the chains of all who have signed hops of these tokens, each once, but for the recipient's own."""
        signers = {read_signer(hop) for token in tokens for hop in token.hops} - {recipient}
        own = self._identity.key.public_key
        found = [self._identity.chain if signer == own else self._chains.get(signer, ()) for signer in sorted(signers)]
        return [tuple(chain) for chain in found if chain]

    # -- hops ------------------------------------------------------------------------------------------------------

    def check(self, token: Token, sender: Attested) -> Proof:
        """Check the hops of a token that `sender` has brought here.

        Raises:
            CertificateInvalid: a hop does not fit the token, or not the one before it (the message says which).
            EnvelopeError: one of them is no hop.
            SignatureInvalid: the last one is not signed by the sender; or, of one that does not come from its home,
                another one by nobody.
            TrustError: of one that does not come from its home: the chain of a signer does not verify.
        """
        me = self._identity.organization
        if not token.hops:
            raise CertificateInvalid("a token that comes from somebody has a hop")
        opened = open_signed(token.hops[-1], (KIND,))
        if opened.signer != sender.public_key:
            raise SignatureInvalid(f"{sender.organization} brought a token that somebody else let pass last")
        hop = parse_hop(opened.payload)
        said = (hop.task_id, hop.agreement, hop.home, hop.home_peer, hop.attempt, hop.sequence, hop.deadline_ms)
        wanted = (
            token.task_id, token.agreement, token.home, token.home_peer, token.attempt, token.sequence,
            token.deadline_ms,
        )  # fmt: skip
        if said != wanted or hop.after != content_digest(token):
            raise CertificateInvalid("the last hop of the token is about another one")
        if hop.to_organization != me or hop.node != str(sender.node):
            raise CertificateInvalid("the last hop of the token was not made by its sender for this organization")
        digests = [sha256(envelope) for envelope in token.hops]
        links = [self._link(digest, envelope) for digest, envelope in zip(digests, token.hops[:-1], strict=False)]
        links.append(_link_of(hop, sender.organization))
        _check_chain(digests, links)
        if sender.organization != token.home:
            # Whoever signed before: a third could else spend the home's room here, and its attempts.
            self._verify(token, digests, links)
        self._remember(digests[-1], links[-1])
        return Proof(hop, head_of(opened), leaf_of(opened), opened.place, opened.size)

    def signed(self, envelope: bytes, hop: FlowHop) -> None:
        """Know an own hop: when it comes back its signature need not be verified, for it is these very bytes."""
        self._remember(sha256(envelope), _link_of(hop, self._identity.organization))

    def left_with(self, envelope: bytes) -> tuple[bytes, bytes]:
        """Return the digest of a hop of a token that is here, and of what came with it."""
        digest = sha256(envelope)
        known = self._links.get(digest)
        return digest, known.after if known is not None else read_hop(envelope).after

    def _link(self, digest: bytes, envelope: bytes) -> _Link:
        known = self._links.get(digest)
        if known is None:
            known = _link_of(read_hop(envelope), "")
            self._remember(digest, known)
        return known

    def _remember(self, digest: bytes, link: _Link) -> None:
        if len(self._links) >= _LINKS_KEPT:
            self._links.clear()
        self._links[digest] = link

    def _verify(self, token: Token, digests: Sequence[bytes], links: list[_Link]) -> None:
        """Verify all signatures of a token that a holder brings, but those that were verified here before."""
        for number, (envelope, link) in enumerate(zip(token.hops, links, strict=True)):
            if not link.verified:
                organization = self._signed_by(envelope, link)
                links[number] = link._replace(verified=organization)
                self._remember(digests[number], links[number])
        _check_hands(links, token.home)

    def _signed_by(self, envelope: bytes, link: _Link) -> str:
        """Return whose node signed a hop."""
        opened = open_signed(envelope, (KIND,))
        own = self._identity.key.public_key
        chain = self._identity.chain if opened.signer == own else self._chains.get(opened.signer)
        if chain is None:
            raise CertificateInvalid(f"the chain of {link.node[:128]} did not come with its hop")
        return _whose(self._trust, opened, link, chain, self.now_ms())


def verify_journey(
    hops: Sequence[bytes], chains: Mapping[bytes, Sequence[bytes]], trust: TrustStore, home: str, now_ms: int
) -> tuple[FlowHop, ...]:
    """Verify the whole history of a task, as an auditor does, and return its hops.

    Args:
        hops: signed, oldest first.
        chains: of their signers, by key.
        trust: the consortium.
        home: the organization whose task it is.
        now_ms: the time, in milliseconds since the Unix epoch.

    Raises:
        CertificateInvalid: a hop does not follow from the one before it.
        ComityError: a signature or a chain does not verify.
    """
    read, links = [], []
    for number, envelope in enumerate(hops):
        opened = open_signed(envelope, (KIND,))
        hop = parse_hop(opened.payload)
        link = _link_of(hop, "")
        expected = sha256(hops[number - 1]) if number else b""
        if link.previous != expected:
            raise CertificateInvalid(f"hop {number} does not follow from the one before it")
        organization = _whose(trust, opened, link, chains.get(opened.signer, ()), now_ms)
        links.append(link._replace(verified=organization))
        read.append(hop)
    _check_order(links)
    if links:
        _check_hands(links, home)
    return tuple(read)


def _whose(trust: TrustStore, opened: Opened, link: _Link, chain: Sequence[bytes], now_ms: int) -> str:
    try:
        attested = trust.verify_signed(chain, link.at_ms)
    except TrustError:  # its certificate was renewed since, perhaps: then the chain is of the same key, and later
        attested = trust.verify_within(chain, link.at_ms, max(now_ms, link.at_ms))
    if attested.public_key != opened.signer or str(attested.node) != link.node:
        raise SignatureInvalid(f"a hop of {link.node[:128]} was signed by somebody else")
    return attested.organization


def _link_of(hop: FlowHop, verified: str) -> _Link:
    return _Link(
        hop.previous, hop.after, hop.before, hop.sequence, hop.attempt, (hop.task_id, hop.agreement, hop.home),
        hop.node, hop.to_organization, hop.at_ms, hop.deadline_ms, verified,
    )  # fmt: skip


def _check_chain(digests: Sequence[bytes], links: Sequence[_Link]) -> None:
    """Check that each hop commits to the one before it, and that nothing happened in between that no hop tells of.

    The first one is the home's (which the home verifies when the token comes back): it vouches for what was before.
    """
    for number in range(1, len(links)):
        one, last = links[number], links[number - 1]
        if one.previous != digests[number - 1]:
            raise CertificateInvalid(f"hop {number} of the token does not follow from the one before it")
        if (one.attempt, one.sequence, one.deadline_ms) != (last.attempt, last.sequence + 1, last.deadline_ms):
            raise CertificateInvalid(f"hop {number} of the token has another attempt, place or deadline than it may")
    _check_order(links)


def _check_order(links: Sequence[_Link]) -> None:
    for number in range(1, len(links)):
        one, last = links[number], links[number - 1]
        if one.task != last.task or one.before != last.after:
            raise CertificateInvalid(f"hop {number} of the token is about another task than the one before it")
        again = last.to == one.task[2]  # the home alone sends a task out anew
        if one.sequence <= last.sequence or one.attempt < last.attempt or (one.attempt > last.attempt and not again):
            raise CertificateInvalid(f"hop {number} of the token goes back behind the one before it")


def _check_hands(links: Sequence[_Link], home: str) -> None:
    """Check that the token was let pass by the organization that it had come to, each time."""
    holder = home
    for number, link in enumerate(links):
        if link.verified != holder:
            raise CertificateInvalid(f"hop {number} is by {link.verified}, and {holder} had the token")
        holder = link.to
