"""Verify where certified records came from, without Comity: with `cryptography` and `securesystemslib` alone.

    python verify.py --bundle bundle.json record.json            # of `comity records show --provenance`
    python verify.py --bundle bundle.json --export rows.jsonl    # of `comity records export`, its proof beside it

README.md says what is checked, and what is not. Exit code 0: everything is proved; 1: something is not.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import FormatError, VerificationError
from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined]

#: The epochs in the bundle, oldest first: from and until when each counts (milliseconds), organization to its roots.
Roots = list[tuple[int, int, dict[str, list[x509.Certificate]]]]
#: How long an epoch still counts for what is signed after the next one was issued, and how far clocks may differ.
HANDOVER_MS, SKEW_MS = 7 * 86_400_000, 60_000
Wire = dict[int, list[Any]]
#: What Python and the libraries raise for bytes that are not what they should be.
MALFORMED = (
    ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, InvalidSignature,
    UnsupportedAlgorithm,
    VerificationError, FormatError, x509.ExtensionNotFound, x509.InvalidVersion, x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)  # fmt: skip


class Unproven(Exception):
    """Something does not hold."""


def need(condition: object, what: str) -> None:
    if not condition:
        raise Unproven(what)


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


# -- DSSE (secure-systems-lab/dsse) and the trust bundle -------------------------------------------------------------


def open_dsse(data: dict[str, Any], payload_type: str, keys: Sequence[SSlibKey], threshold: int) -> dict[str, Any]:
    """The JSON in an envelope that at least `threshold` of `keys` have signed."""
    for encoded in (data["payload"], *(signature["sig"] for signature in data["signatures"])):
        need(base64.b64encode(base64.b64decode(encoded)).decode() == encoded, "an envelope is not in plain base64")
    envelope = Envelope.from_dict(json.loads(json.dumps(data)))
    need(envelope.payload_type == payload_type, f"the payload is a {envelope.payload_type}")
    envelope.verify(list(keys), threshold)
    payload: dict[str, Any] = json.loads(envelope.payload)
    return payload


def read_bundle(data: bytes) -> Roots:
    """The epochs of a bundle, and when each counts.

    The first one has to be signed by all of its members, each later one by more than half of those of the epoch before,
    whose digest it names. The roots of the two may have signed it, and nobody else. Every signature has to hold.
    """
    outer, epochs = json.loads(data), list[tuple[int, int, dict[str, list[x509.Certificate]]]]()
    before: dict[str, tuple[str, SSlibKey]] = {}
    digest = ""
    for epoch in [outer] if "payloadType" in outer else [*outer["history"], outer["bundle"]]:
        payload = base64.b64decode(epoch["payload"])
        said, roots = json.loads(payload), defaultdict(list)
        keys: dict[str, tuple[str, SSlibKey]] = {}
        for organization, texts in said["members"].items():
            for der in map(base64.b64decode, texts):
                root = x509.load_der_x509_certificate(der)
                root.verify_directly_issued_by(root)
                key, keyid = root.public_key(), hashlib.sha256(der).hexdigest()
                if not isinstance(key, EllipticCurvePublicKey) or uri_of(root) != f"spiffe://{organization}":
                    raise Unproven(f"a root of {organization} has no P-256 key, or names somebody else")
                keys[keyid] = (organization, SSlibKey.from_crypto(key, keyid=keyid))
                roots[organization].append(root)
        signed = [signature["keyid"] for signature in epoch["signatures"]]
        need(set(signed) <= {*keys, *before} and len(set(signed)) == len(signed), "somebody else has signed the bundle")
        signers = [{**before, **keys}[keyid][1] for keyid in signed]
        open_dsse(epoch, "application/vnd.comity.trust-bundle.v1+json", signers, len(signers))
        voters = before or keys
        votes, members = {voters[one][0] for one in signed if one in voters}, {name for name, _ in voters.values()}
        enough = 2 * len(votes) > len(members) if before else votes == members
        need(enough, "an epoch is not signed by more than half of the members before it, or the first not by all")
        need(not before or said["previous"] == digest, "an epoch of the bundle does not follow from the one before it")
        if epochs:
            begins, ends, those = epochs[-1]
            epochs[-1] = (begins, min(ends, said["issued_ms"] + HANDOVER_MS), those)
        epochs.append((said["issued_ms"] - SKEW_MS if epochs else 0, said["expires_ms"], dict(roots)))
        before, digest = keys, sha256(payload).hex()
    return epochs


def uri_of(certificate: x509.Certificate) -> str:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return "".join(names.get_values_for_type(x509.UniformResourceIdentifier))


def node_of(leaf: bytes, epochs: Roots, at_ms: int, until_ms: int = 0) -> tuple[str, bytes]:
    """The SPIFFE ID and the Ed25519 key of a node whose certificate (DER) a root of its organization has issued.

    It was in order at `at_ms`, by an epoch that counted then; or, if that was later and by `until_ms`, when it began or
    an epoch did: nodes renew their certificates and keep their keys.
    """
    certificate = x509.load_der_x509_certificate(leaf)
    at_ms = max(at_ms, min(round(certificate.not_valid_before_utc.timestamp() * 1000), until_ms))
    node, key = uri_of(certificate), certificate.public_key()
    if not isinstance(key, Ed25519PublicKey) or not node.startswith("spiffe://"):
        raise Unproven(f"{node} is no node")
    need(not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca, f"{node} is a CA")
    for then in (at_ms, *(begins for begins, _, _ in epochs if at_ms < begins <= until_ms)):
        moment = datetime.fromtimestamp(then / 1000, UTC)
        for root in (root for a, b, roots in epochs if a <= then < b for root in roots.get(node.split("/")[2], [])):
            if not all(each.not_valid_before_utc <= moment <= each.not_valid_after_utc for each in (certificate, root)):
                continue
            try:
                certificate.verify_directly_issued_by(root)
            except (ValueError, InvalidSignature):
                continue
            return node, key.public_bytes_raw()
    raise Unproven(f"no root of its organization vouches for {node} at {at_ms} ms since 1970")


def peer_id(key: bytes) -> str:
    """The libp2p PeerId of an Ed25519 key, by which a node names its key: base58 of a multihash."""
    number, letters = int.from_bytes(b"\x00\x24\x08\x01\x12\x20" + key, "big"), ""
    while number:
        number, letter = divmod(number, 58)
        letters = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"[letter] + letters
    return "1" + letters


# -- protobuf's wire format, and the envelopes in it (libp2p RFC 0002, proto/comity/v1/envelope.proto) ---------------


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        need(at < len(data) and shift < 64, "a number is cut off")
        value, shift, at = value | (data[at] & 0x7F) << shift, shift + 7, at + 1
        if data[at - 1] < 0x80:
            return value, at


def wire(data: bytes) -> Wire:
    """Field number to its values: numbers, or bytes."""
    found: Wire = defaultdict(list)
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        if tag & 7 == 0:
            value, at = varint(data, at)
            found[tag >> 3].append(value)
            continue
        need(tag & 7 in (1, 2, 5), "a field of an unknown type")
        length, at = varint(data, at) if tag & 7 == 2 else ({1: 8, 5: 4}[tag & 7], at)
        need(at + length <= len(data), "a field is cut off")
        found[tag >> 3].append(data[at : at + length])
        at += length
    return found


def one(fields: Wire, number: int, default: Any = b"") -> Any:  # noqa: ANN401  (as the field's type is)
    return fields[number][-1] if number in fields else default


def text(fields: Wire, number: int) -> str:
    return bytes(one(fields, number)).decode()


def prefixed(*parts: bytes) -> bytes:
    """Each part after its length as a varint; none here is longer than 2^28."""
    out = b""
    for part in parts:
        length = len(part)
        while length > 0x7F:
            out, length = out + bytes([length & 0x7F | 0x80]), length >> 7
        out += bytes([length]) + part
    return out


def open_envelope(data: bytes, kind: bytes) -> tuple[bytes, bytes]:
    """The 32-byte key that signed a document of this kind, and the document."""
    fields = wire(data)
    key, payload, signature = one(fields, 1), one(fields, 3), one(fields, 5)
    need(len(key) == 36 and key[:4] == b"\x08\x01\x12\x20", "a signer has no Ed25519 key")
    need(one(fields, 2) == b"/comity/v1/" + kind, f"an envelope is no {kind.decode()}")
    signed = prefixed(b"comity/v1/" + kind, b"/comity/v1/" + kind, payload)
    if len(signature) > 64:  # one signature over many: with the place in a Merkle tree and the path to its root
        index, size = int.from_bytes(signature[64:66], "big"), signature[66:68]
        path = [signature[at : at + 32] for at in range(68, len(signature), 32)]
        root = climb(sha256(b"\x00" + signed), index, int.from_bytes(size, "big"), path)
        signed = prefixed(b"comity/v1/batch", b"/comity/v1/batch", size + root)
    Ed25519PublicKey.from_public_bytes(key[4:]).verify(signature[:64], signed)
    return key[4:], payload


def climb(node: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """The root that an inclusion path leads to (RFC 9162, section 2.1.3.2)."""
    last = size - 1
    need(index <= last, "a place in a batch that is none")
    for sibling in path:
        need(last > 0 and len(sibling) == 32, "a path in a batch is too long")
        if index & 1 or index == last:
            node = sha256(b"\x01" + sibling + node)
            while index and not index & 1:
                index, last = index >> 1, last >> 1
        else:
            node = sha256(b"\x01" + node + sibling)
        index, last = index >> 1, last >> 1
    need(last == 0, "a path in a batch is too short")
    return node


# -- the documents (proto/comity/v1/agreement.proto, task.proto) -----------------------------------------------------


def open_statement(data: bytes, predicate_type: str, roots: Roots) -> tuple[dict[str, Any], str, int]:
    """An in-toto Statement, signed by the node whose chain it carries; with the node's organization and the time."""
    envelope = json.loads(data)
    predicate = json.loads(base64.b64decode(envelope["payload"]))["predicate"]
    need(type(predicate["signedMs"]) is int, "the time of a statement is no whole number of milliseconds")
    node, key = node_of(base64.b64decode(predicate["holderChain"][0]), roots, predicate["signedMs"])
    need(len(envelope["signatures"]) == 1, "a statement has one signature")
    holder = SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(key), keyid=peer_id(key))
    statement = open_dsse(envelope, "application/vnd.in-toto+json", [holder], 1)
    need(statement["predicateType"] == predicate_type, f"a statement of type {statement['predicateType']}")
    need(node.split("/")[2] == predicate["holder"] and len(statement["subject"]) == 1, "another holder has signed")
    return statement, predicate["holder"], predicate["signedMs"]


def open_agreement(data: bytes, roots: Roots) -> tuple[bytes, Wire, bytes]:
    """The digest of an agreement's terms, the terms, signed by every participant, and the chance of its draws."""
    agreement = wire(data)
    terms = one(agreement, 1)
    fields, added = wire(terms), dict[bytes, bytes]()
    for signature in map(wire, agreement[2]):
        node, key = node_of(signature[3][0], roots, one(fields, 15), one(fields, 16))
        need(open_envelope(one(signature, 2), b"terms") == (key, terms), f"{node} has signed other terms")
        added[node.split("/")[2].encode()] = one(signature, 4)
    need(set(added) == set(fields[6]) and len(added) == len(agreement[2]), "not every participant has signed")
    rule = wire(one(fields, 12))
    if not one(rule, 5, 0):
        return sha256(terms), fields, b""
    shown = [added[name] for name in fields[6]]
    bound = [sha256(b"comity/draw/nonce/v1/commitment\x00" + each) for each in shown]
    need(bound == rule[6] and {len(each) for each in shown} == {32}, "somebody adds to a draw what it is not bound to")
    return sha256(terms), fields, sha256(b"comity/draw/nonce/v1/all\x00" + b"".join(shown))


def verify_record(data: bytes, roots: Roots) -> dict[str, Any]:
    """Prove one record; returns what is proved."""
    statement, holder, signed_ms = open_statement(data, "urn:comity:predicate:certified-record:v1", roots)
    predicate = statement["predicate"]
    certified = wire(base64.b64decode(predicate["certified"]))
    task, certificate = wire(one(certified, 1)), wire(one(certified, 2))
    task_id, record, home = one(task, 1), one(task, 5), text(task, 3)
    need(statement["subject"][0]["digest"] == {"sha256": sha256(record).hex()}, "the statement is about another record")
    need((predicate["task"], predicate["home"]) == (task_id.hex(), home), "the statement is about another task")
    agreement, terms, chance = open_agreement(base64.b64decode(predicate["agreement"]), roots)
    participants = {name.decode() for name in terms[6]}
    need(agreement == one(task, 2) == one(certificate, 3), "the record was made under another agreement")
    need({home, holder} <= participants, "home and holder do not take part in the agreement")
    check_hops(task, certified[3][0], roots, signed_ms)
    panel = panel_of(certificate, terms, chance, (task_id, agreement, home))
    votes = check_votes(certificate, terms, (task_id, sha256(record), agreement, home), panel, roots)
    return {
        "task": task_id.hex(), "record": record, "author": home, "holder": holder, "agreement": agreement.hex(),
        "dataset": text(terms, 8), "score": one(certificate, 7, 0), "votes": votes, "signed_ms": signed_ms,
    }  # fmt: skip


def check_hops(task: Wire, home_leaf: bytes, roots: Roots, until_ms: int) -> None:
    """Every hop is signed by the home's node, is about this task, and commits to the one before."""
    need(task[6], "the record has no history")
    last = wire(open_envelope(task[6][-1], b"hop")[1])
    node, key = node_of(home_leaf, roots, one(last, 11, 0), until_ms)
    need(node.split("/")[2] == text(task, 3), "the history is another organization's")
    previous = b""
    for envelope in task[6]:
        signer, payload = open_envelope(envelope, b"hop")
        hop = wire(payload)
        need((signer, text(hop, 5), one(hop, 1)) == (key, node, one(task, 1)), "a hop is of another node or task")
        need(one(hop, 4) == previous, "a hop does not follow from the one before it")
        previous = sha256(envelope)
    need(one(last, 3) == sha256(one(task, 5)), "the last hop is about another record")
    need(one(last, 2, 0) == one(task, 4, 0), "the last hop is about another revision")


def panel_of(certificate: Wire, terms: Wire, chance: bytes, about: tuple[bytes, bytes, str]) -> set[str]:
    """Who may vote: everybody but the author, or the panel that is drawn for the batch that the task is of."""
    (task_id, agreement, home), rule = about, wire(one(terms, 12))
    others = {name.decode() for name in terms[6]} - {home}
    size, number, ordinal = one(rule, 5, 0), one(certificate, 12, 0), one(certificate, 13, 0)
    if not size:
        need(number == ordinal == 0, "a place in a batch is named where no panel is drawn")
        return others
    need(size < len(others), "the panel is not smaller than all others together")
    records, each = one(terms, 9, 0), one(terms, 10, 0)
    need(number < -(-records // (1 if one(terms, 19) else max(each, 1))) and ordinal < each, "there is no such place")
    batch = sha256(b"\x00".join((b"batch", agreement, home.encode(), str(number).encode())))[:16]
    need(sha256(b"\x00".join((b"task", batch, str(ordinal).encode())))[:16] == task_id, "the task is of another place")
    numbers = one(terms, 4, 0).to_bytes(8, "big") + number.to_bytes(8, "big")
    seed = sha256(b"\x00".join((b"comity/draw/seed/v1", agreement + chance + numbers, home.encode())))
    return set(sorted(others, key=lambda name: (sha256(seed + name.encode()), name))[:size])


def check_votes(
    certificate: Wire, terms: Wire, about: tuple[bytes, bytes, bytes, str], panel: set[str], roots: Roots
) -> dict[str, int]:
    """A quorum of those who may vote has accepted this record; returns their scores."""
    rule = wire(one(terms, 12))
    eligible, faulty, quorum, least = (one(rule, number, 0) for number in (1, 2, 3, 4))
    need(eligible >= 3 * faulty + 1 and (eligible + faulty) // 2 + 1 <= quorum <= eligible, "the quorum is unsound")
    need(eligible == len(panel), "the quorum is of other participants")
    need(tuple(one(certificate, number, 0) for number in (8, 9, 10)) == (eligible, faulty, quorum), "another quorum")
    certified = (one(certificate, 1), one(certificate, 2), one(certificate, 3), text(certificate, 5))
    need(certified == about and one(certificate, 6, 0) == 1, "the certificate does not accept this record")
    said = [(text(each, 1), one(each, 2)) for each in map(wire, certificate[14])]
    committed, scores = dict(said), dict[str, int]()
    if one(rule, 7, 0):
        need(len(committed) == len(said) >= quorum and set(committed) <= panel, "no quorum has committed to scores")
    for vote in map(wire, certificate[11]):
        signer, payload = open_envelope(one(vote, 1), b"review")
        review = wire(payload)
        node, key = node_of(vote[2][0], roots, one(review, 12, 0))
        voter, score = text(review, 6), one(review, 9, 0)
        said_of = (one(review, 1), one(review, 3), one(review, 4), text(review, 13))
        need(signer == key and node.split("/")[2] == voter, f"{node} voted in the name of {voter}")
        need(
            said_of == about and one(review, 5, 0) == one(certificate, 4, 0),
            f"the vote of {voter} is about something else",
        )
        need(one(review, 8, 0) == 1 and score >= least, f"{voter} has not accepted the record")
        need(voter in panel and voter not in scores, f"{voter} may not vote, or votes twice")
        if one(rule, 7, 0):
            check_commitment(one(vote, 3), key, review, committed)
        scores[voter] = score
    need(len(scores) >= quorum, f"{len(scores)} votes, and {quorum} are needed")
    ordered = sorted(scores.values())
    need(one(certificate, 7, 0) == ordered[(len(ordered) - 1) // 2], "the score is not the lower median of the votes")
    return scores


def check_commitment(envelope: bytes, key: bytes, review: Wire, committed: dict[str, bytes]) -> None:
    """A vote is what its voter had committed to, and names the set of commitments that it had seen before."""
    voter, revision = text(review, 6), one(review, 2, 0).to_bytes(4, "big")
    signer, payload = open_envelope(envelope, b"commitment")
    made = wire(payload)
    need(committed.get(voter) == sha256(envelope) and signer == key, f"{voter} has not committed to its score in time")
    about = (one(made, 1), one(made, 3, 0), text(made, 4), text(made, 5))
    need(about == (one(review, 4), one(review, 2, 0), voter, text(review, 13)), f"{voter} committed to other things")
    nonce, score = one(review, 15), one(review, 9, 0).to_bytes(4, "big")
    opened = nonce + one(review, 1) + one(review, 3) + revision + score
    leaf = sha256(b"\x00".join((b"comity/commitment/v1", opened, voter.encode())))
    sealed = [one(task, 2) for task in map(wire, made[6]) if one(task, 1) == one(review, 1)]
    need(len(nonce) == 32 and sealed == [leaf], f"{voter} has committed to another score")
    parts = [b"comity/commitments/v1", one(made, 1) + one(made, 2) + revision]
    parts += [committed[name] + name.encode() for name in sorted(committed)]
    seen = sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts))
    need(one(review, 14) == seen, f"{voter} had seen other commitments when it showed its score")


# -- exports ---------------------------------------------------------------------------------------------------------


def verify_export(path: Path, roots: Roots) -> Iterator[dict[str, Any]]:
    """Prove a file, and each record in it; it is proved when the iterator has ended."""
    proof = path.with_name(path.name + ".provenance.jsonl").read_bytes().splitlines()
    need(proof, "the proof is empty")
    statement, holder, _ = open_statement(proof[0], "urn:comity:predicate:dataset:v1", roots)
    predicate, data = statement["predicate"], path.read_bytes()
    need(statement["subject"][0]["digest"] == {"sha256": sha256(data).hex()}, "this is not the file that was exported")
    rows = [json.loads(line) for line in data.splitlines()] if predicate["form"] == "jsonl" else None
    need(len(proof) - 1 == predicate["records"], "the proof is of another number of records")
    need(rows is None or len(rows) == predicate["records"], "the file holds another number of records")
    need(merkle_root([sha256(b"\x00" + line) for line in proof[1:]]).hex() == predicate["root"], "other records")
    seen = set[tuple[str, ...]]()
    for number, line in enumerate(proof[1:]):
        record = verify_record(line, roots)
        need(record["holder"] == holder, f"record {number + 1} is of another holder")
        which = (record["task"], record["author"], record["agreement"])
        need(which not in seen, f"record {number + 1} stands twice")
        seen.add(which)
        if rows is not None:
            expected = {
                "task_id": record["task"], "author": record["author"], "dataset": record["dataset"],
                "score": record["score"], "record_digest": sha256(record["record"]).hex(),
                "agreement_digest": record["agreement"], "fields": json.loads(record["record"]),
            }  # fmt: skip
            same = json.dumps(rows[number], sort_keys=True) == json.dumps(expected, sort_keys=True)
            need(same, f"row {number + 1} is not the record that is proved")
        yield record


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """RFC 9162, section 2.1.1."""
    if not leaves:
        return sha256(b"")
    if len(leaves) == 1:
        return leaves[0]
    cut = 1 << (len(leaves) - 1).bit_length() - 1
    return sha256(b"\x01" + merkle_root(leaves[:cut]) + merkle_root(leaves[cut:]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("provenance", nargs="*", type=Path, help="files of `comity records show --provenance`")
    parser.add_argument("--bundle", type=Path, required=True, help="the trust bundle, from a source that you trust")
    parser.add_argument("--export", type=Path, action="append", default=[], help="a file of `comity records export`")
    arguments = parser.parse_args()
    if not (arguments.provenance or arguments.export):
        parser.error("name a provenance, or a file with --export")
    where: Path = arguments.bundle
    try:
        bundle = arguments.bundle.read_bytes()
        roots = read_bundle(bundle)
        print(f"trust bundle of {len(roots[-1][2])} organizations, SHA-256 {sha256(bundle).hex()}")
        for where in arguments.provenance:
            report(where, verify_record(where.read_bytes(), roots))
        for where in arguments.export:
            records = list(verify_export(where, roots))
            for record in records:
                report(where, record)
            print(f"{where}: proven, {len(records)} records")
    except (Unproven, OSError, *MALFORMED) as error:
        said = (str(error) or type(error).__name__).encode("unicode_escape").decode()  # it may steer a terminal
        print(f"{where}: NOT PROVEN: {said}", file=sys.stderr)
        return 1
    return 0


def report(where: Path, record: dict[str, Any]) -> None:
    votes = ", ".join(f"{voter} {score / 100:.2f}%" for voter, score in sorted(record["votes"].items()))
    print(
        f"{where}: record {sha256(record['record']).hex()} of {record['author']}, held by {record['holder']}: {votes}"
    )


if __name__ == "__main__":
    sys.exit(main())
