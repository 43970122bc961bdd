"""Who is on the panel that judges a batch: a draw that nobody chooses and anybody can repeat.

An agreement with `panel: k` has each batch of an author judged by k of the other participants. They are the first k of
a permutation that follows from four things: the agreement (its digest), what all participants have added to the draw,
the author and the number of the batch. Ids of batches and tasks follow from the same, so that an author has no free
choice left: not of the task's id, not of the record (its digest is not in the draw), not of the repair.

*What is added*, and when. Signatures will not do as the source of chance: Ed25519 as its verifiers see it lets a signer
make any number of signatures of the same bytes, and the initiator, who signs last, would try until a friend is drawn.
So each participant adds 32 bytes that it is bound to before it can know what the others add:

1. When it is ready to sign, it shows the SHA-256 of its bytes (`commitment`).
2. The initiator puts the commitments of all into the terms; who does not find its own there does not sign.
3. With its signature on these terms each shows its bytes (`nonce`), which have to be those of its commitment. They
   follow from the node's key and the id of the agreement, so nothing has to be kept, and as a node signs one set of
   terms for an id, it shows them once.

*What a coalition can do still.* As long as one participant is honest, no coalition knows the seed before the terms
with all commitments are fixed, and none can move it after.
  - It can give up: the initiator sees all bytes before it signs, and may let the negotiation end. That gives one more
    draw for each time that every participant signs anew, under another id; each of them has an entry
    `agreement.given-up` in its audit log then. m such attempts raise a chance p to at most 1 - (1 - p) ** (m + 1).
  - All panels of an agreement are known once it is concluded. An author can put its bad records into the batches whose
    panels are good for it: of all batches that is the share p that `chance_of_more` gives, no more; and panels could be
    bribed. An agreement that is shorter, or a panel that is larger, leaves less of both.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from math import comb

from comity.digest import sha256
from comity.envelope import sign_document
from comity.errors import AgreementError, CertificateInvalid
from comity.signing import PrivateKey
from comity.v1.agreement_pb2 import Terms

#: The document whose signature is the source of what an organization adds; it is never shown.
KIND = "draw"
NONCE_BYTES = 32
_NONCE, _SEED = b"comity/draw/nonce/v1", b"comity/draw/seed/v1"
#: Batches of one author whose ids are searched for a number; an agreement with a panel has no more.
MAX_BATCHES = 65_536


def nonce(key: PrivateKey, terms: Terms) -> bytes:
    """Return the 32 bytes that the owner of `key` adds to the draw of an agreement; the same ones each time.

    To be shown with the signature of the terms, and not before.
    """
    which = f"{terms.initiator}\x00{terms.id}\x00{terms.issued_ms}\x00{terms.expires_ms}"
    return sha256(b"\x00".join((_NONCE, sign_document(key, KIND, which.encode()))))


def commitment(added: bytes) -> bytes:
    """Return what binds an organization to what it will add."""
    return sha256(_NONCE + b"/commitment\x00" + added)


def entropy(added: Iterable[bytes]) -> bytes:
    """Return the 32 bytes of chance that an agreement has: of what each participant added, in their order."""
    return sha256(_NONCE + b"/all\x00" + b"".join(added))


def draw(
    *, agreement: bytes, chance: bytes, epoch: int, author: str, batch: int, eligible: Collection[str], size: int
) -> tuple[str, ...]:
    """Return the panel of one batch, in the order of the draw.

    The permutation is the order of SHA-256(seed, name): each one is as likely as any other.

    Args:
        agreement: digest of its terms.
        chance: `entropy` of what its participants added.
        epoch: of the trust bundle that the agreement names.
        author: whose batch it is.
        batch: its number, from 0.
        eligible: who may be drawn; the author is not among them.
        size: of the panel.

    Raises:
        CertificateInvalid: the author would judge its own batch, or there are not that many others.
    """
    if author in eligible or not 1 <= size <= len(eligible):
        raise CertificateInvalid(f"no panel of {size} can be drawn of {len(eligible)} organizations")
    numbers = epoch.to_bytes(8, "big") + batch.to_bytes(8, "big")
    seed = sha256(b"\x00".join((_SEED, agreement + chance + numbers, author.encode())))
    return tuple(sorted(eligible, key=lambda name: (sha256(seed + name.encode()), name))[:size])


def batch_id(agreement: bytes, organization: str, number: int) -> bytes:
    """Return the 16-byte id of an organization's batch under an agreement (by its digest)."""
    return sha256(b"\x00".join((b"batch", agreement, organization.encode(), str(number).encode())))[:16]


def task_id(batch: bytes, ordinal: int) -> bytes:
    """Return the 16-byte id of a batch's task."""
    return sha256(b"\x00".join((b"task", batch, str(ordinal).encode())))[:16]


@lru_cache(maxsize=4096)
def number_of(agreement: bytes, organization: str, batch: bytes, most: int) -> int:
    """Return the number of an organization's batch, of which there are `most` under an agreement.

    Raises:
        CertificateInvalid: it is none of them.
    """
    for number in range(min(most, MAX_BATCHES)):
        if batch_id(agreement, organization, number) == batch:
            return number
    raise CertificateInvalid(f"{batch.hex()} is no batch of {organization} under this agreement")


def chance_of_more(eligible: int, liars: int, size: int, borne: int) -> float:
    """Return the chance that a panel has more than `borne` liars: the tail of the hypergeometric distribution.

    Args:
        eligible: organizations that may be drawn.
        liars: how many of them lie.
        size: of the panel.
        borne: liars that the panel's quorum bears (f).
    """
    bad: Sequence[int] = range(borne + 1, min(liars, size) + 1)
    return sum(comb(liars, some) * comb(eligible - liars, size - some) for some in bad) / comb(eligible, size)


# -- in terms ----------------------------------------------------------------------------------------------------------


def batches(terms: Terms) -> int:
    """Return how many batches a home has at most under these terms.

    Where records are made step by step (`flow`), whoever is ready is judged: each can be a batch of its own.
    """
    each = 1 if terms.flow else max(terms.batch_records, 1)
    return -(-terms.records_per_organization // each)


def faults(terms: Terms) -> list[tuple[str, bool]]:
    """Return what can be wrong with what terms say about panels, each with whether it is."""
    review = terms.review
    commitments = list(review.draw_commitments)
    whole = len(commitments) == len(terms.participants) and all(len(one) == NONCE_BYTES for one in commitments)
    return [
        ("a panel is not smaller than all others together", review.panel >= len(terms.participants) - 1 > 0),
        (f"with a panel there are over {MAX_BATCHES} batches", bool(review.panel) and batches(terms) > MAX_BATCHES),
        (
            "with a panel everybody commits to what it adds to the draw, and nobody without one",
            bool(commitments) and not (review.panel and whole),
        ),
    ]


def own(key: PrivateKey, terms: Terms) -> bytes:
    """Return what the owner of `key` adds to the draw of panels under these terms; empty without a panel."""
    return nonce(key, terms) if terms.review.panel else b""


def own_commitment(key: PrivateKey, terms: Terms) -> bytes:
    """Return what binds the owner of `key` to what it will add; empty without a panel."""
    return commitment(own(key, terms)) if terms.review.panel else b""


def bound(terms: Terms, commitments: Mapping[str, bytes]) -> bytes:
    """Return terms with a panel, as bytes, with what binds each participant."""
    made = Terms.FromString(terms.SerializeToString())
    del made.review.draw_commitments[:]
    made.review.draw_commitments.extend(commitments[organization] for organization in terms.participants)
    return made.SerializeToString()


def check_added(terms: Terms, organization: str, added: bytes) -> None:
    """Refuse what a participant adds to the draw if these terms do not bind it to that.

    Raises:
        AgreementError: they do not.
    """
    if not terms.review.panel:
        return
    known = dict(zip(terms.participants, terms.review.draw_commitments, strict=False))
    if len(added) != NONCE_BYTES or commitment(added) != known.get(organization):
        raise AgreementError(f"{organization} adds to the draw of {terms.id} what the terms do not bind it to")


def chance_of(terms: Terms, added: Mapping[str, bytes]) -> bytes:
    """Return the chance of an agreement's draws, of what each participant has added; empty without a panel.

    Raises:
        AgreementError: somebody added what the terms do not bind it to.
    """
    if not terms.review.panel:
        return b""
    for organization in terms.participants:
        check_added(terms, organization, added[organization])
    return entropy(added[organization] for organization in terms.participants)
