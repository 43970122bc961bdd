"""One signature for many envelopes: each is good alone, and nothing else is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import pytest

from comity import merkle, signed, signing
from comity.envelope import (
    DOCUMENT_KINDS,
    MAX_BATCH,
    MAX_ENVELOPE,
    MESSAGE_KINDS,
    Unsigned,
    open_document,
    open_message,
    sign_all,
    sign_document,
    unsigned_document,
    unsigned_message,
)
from comity.errors import EnvelopeMalformed, SignatureInvalid
from comity.signing import PrivateKey
from comity.v1 import envelope_pb2

KEY = PrivateKey(bytes(range(32)))
OTHER = PrivateKey(b"o" * 32)
NOW = 1_750_000_000_000
REFUSED = (EnvelopeMalformed, SignatureInvalid)


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Each test begins with nothing remembered as verified."""
    signed._verify_head.cache_clear()
    yield
    signed._verify_head.cache_clear()


def documents(count: int) -> list[Unsigned]:
    return [unsigned_document("hop", b"body %d" % number) for number in range(count)]


def message(number: int, kind: str = "receipt") -> Unsigned:
    return unsigned_message(kind, b"body", audience=OTHER.peer_id, message_id=number.to_bytes(16, "big"), now_ms=NOW)


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def signing_input(kind: str, payload: bytes) -> bytes:
    """RFC 0002, written down once more."""
    parts = (b"comity/v1/" + kind.encode(), b"/comity/v1/" + kind.encode(), payload)
    return b"".join(varint(len(part)) + part for part in parts)


def leaf(kind: str, payload: bytes) -> bytes:
    return hashlib.sha256(b"\0" + signing_input(kind, payload)).digest()


def envelope(kind: str, payload: bytes, signature: bytes, key: PrivateKey = KEY) -> bytes:
    """Any signature field, with the protobuf library instead of our own writer."""
    return envelope_pb2.Envelope(
        public_key=signing.libp2p_public_key(key.public_key),
        payload_type=b"/comity/v1/" + kind.encode(),
        payload=payload,
        signature=signature,
    ).SerializeToString()


def place(index: int, size: int) -> bytes:
    return index.to_bytes(2, "big") + size.to_bytes(2, "big")


def field(data: bytes) -> bytes:
    """What is in an envelope's signature field."""
    return envelope_pb2.Envelope.FromString(data).signature


def with_field(data: bytes, signature: bytes) -> bytes:
    changed = envelope_pb2.Envelope.FromString(data)
    changed.signature = signature
    return changed.SerializeToString()


def split(data: bytes) -> tuple[bytes, int, int, list[bytes]]:
    proof = field(data)
    path = [proof[at : at + 32] for at in range(68, len(proof), 32)]
    return proof[:64], int.from_bytes(proof[64:66], "big"), int.from_bytes(proof[66:68], "big"), path


@pytest.mark.parametrize("size", [2, 3, 4, 5, 7, 8, 9, 31, 100, 1025])
def test_each_of_a_batch_is_good_alone(size: int) -> None:
    signed_now = sign_all(KEY, documents(size))
    assert len({field(data)[:64] for data in signed_now}) == 1
    for number in reversed(range(size)):
        document = open_document(signed_now[number], "hop")
        assert (document.kind, document.signer, document.body) == ("hop", KEY.public_key, b"body %d" % number)
        signature, index, stated, path = split(signed_now[number])
        assert (index, stated) == (number, size)
        assert signed_now[number] == envelope("hop", document.body, signature + place(index, size) + b"".join(path))
    assert len(max(signed_now, key=len)) - len(sign_document(KEY, "hop", b"body")) < 4 + 12 * 32 + 10


def test_kinds_and_recipients_share_a_batch() -> None:
    unsigned = [unsigned_document(kind, kind.encode()) for kind in sorted(DOCUMENT_KINDS)]
    unsigned += [message(number, kind) for number, kind in enumerate(sorted(MESSAGE_KINDS))]
    unsigned.append(unsigned_document("hop", b""))
    signed_now = sign_all(KEY, unsigned)
    for data, one in zip(signed_now, unsigned, strict=True):
        if one.kind in DOCUMENT_KINDS:
            assert open_document(data, one.kind).body == one.payload
        else:
            opened = open_message(data, {one.kind})
            assert (opened.kind, opened.header.audience, opened.body) == (one.kind, OTHER.peer_id, b"body")


def test_one_alone_has_the_plain_form() -> None:
    assert sign_all(KEY, []) == []
    assert sign_all(KEY, documents(1)) == [sign_document(KEY, "hop", b"body 0")]


@pytest.mark.invariant("S7")
def test_a_batch_has_a_largest_size() -> None:
    signed_now = sign_all(KEY, documents(MAX_BATCH + 1))
    assert {len(split(data)[3]) for data in signed_now[:-1]} == {12}
    assert signed_now[-1] == sign_document(KEY, "hop", b"body %d" % MAX_BATCH)
    for at in (0, 1, 2047, MAX_BATCH - 1):
        open_document(signed_now[at], "hop")
    two_batches = sign_all(KEY, documents(MAX_BATCH + 2))
    assert [split(data)[1:3] for data in two_batches[-3:]] == [(MAX_BATCH - 1, MAX_BATCH), (0, 2), (1, 2)]


@pytest.mark.invariant("S7")
def test_what_has_no_room_for_a_path_is_signed_alone() -> None:
    plain = len(sign_document(KEY, "hop", bytes(3_000_000))) - 3_000_000
    largest = unsigned_document("hop", bytes(MAX_ENVELOPE - plain))
    signed_now = sign_all(KEY, [*documents(2), largest, *documents(1)])
    assert [len(field(data)) for data in signed_now] == [132, 132, 64, 100]
    assert [len(open_document(data, "hop").body) for data in signed_now] == [6, 6, MAX_ENVELOPE - plain, 6]
    with pytest.raises(EnvelopeMalformed, match="limit"):
        unsigned_document("hop", bytes(MAX_ENVELOPE - plain + 1))


@pytest.mark.invariant("S2")
@pytest.mark.parametrize("warm", [False, True])
def test_every_changed_byte_of_a_batched_envelope_is_refused(warm: bool) -> None:
    """All 255 other values in the fields' borders and in index and size, two bits of every other byte."""
    signed_now = sign_all(KEY, [message(number) for number in range(11)])
    for data in (signed_now[3], signed_now[10]):
        if warm:
            open_message(data, MESSAGE_KINDS)
        tail = len(data) - len(field(data)) - 3
        borders = {*range(4), *range(37, 60), *range(tail, tail + 3), *range(tail + 3 + 64, tail + 3 + 68)}
        for at in range(len(data)):
            for flip in range(1, 256) if at in borders else (1, 128):
                changed = data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :]
                with pytest.raises(REFUSED):
                    open_message(changed, MESSAGE_KINDS)
        open_message(data, MESSAGE_KINDS)


@pytest.mark.invariant("S2")
@pytest.mark.parametrize("warm", [False, True])
def test_no_other_place_passes_with_the_same_path(warm: bool) -> None:
    """The head alone would not tell sizes apart: 5 to 8 leaves have the same path for the first one."""
    signed_now = sign_all(KEY, documents(7))
    for data in signed_now:
        signature, index, size, path = split(data)
        if warm:
            open_document(data, "hop")
        for other_size in range(70):
            for other_index in range(70):
                if (other_index, other_size) != (index, size):
                    moved = signature + place(other_index, other_size) + b"".join(path)
                    with pytest.raises(REFUSED):
                        open_document(with_field(data, moved), "hop")
    signature, _, _, path = split(signed_now[0])
    hashed = leaf("hop", b"body 0")
    assert len({merkle.root_from_path(hashed, 0, size, path) for size in (5, 6, 7, 8)}) == 1, "the trap is there"
    with pytest.raises(SignatureInvalid):
        open_document(with_field(signed_now[0], signature + place(0, 8) + b"".join(path)), "hop")


@pytest.mark.invariant("S2")
def test_a_proof_is_good_for_its_own_leaf_kind_signer_and_batch() -> None:
    signed_now = sign_all(KEY, documents(6))
    another = sign_all(KEY, documents(7))
    for at, data in enumerate(signed_now):
        open_document(data, "hop")
        for other in [*signed_now[:at], *signed_now[at + 1 :], another[at]]:
            if other is not another[at]:
                with pytest.raises(REFUSED):
                    open_document(with_field(data, field(other)), "hop")
            with pytest.raises(REFUSED):
                open_document(with_field(data, field(data)[:64] + field(other)[64:]), "hop")
            if field(other)[:64] != field(data)[:64]:
                with pytest.raises(REFUSED):
                    open_document(with_field(data, field(other)[:64] + field(data)[64:]), "hop")
        relabelled = envelope("review", b"body %d" % at, field(data))
        with pytest.raises(SignatureInvalid):
            open_document(relabelled, "review")
        with pytest.raises(SignatureInvalid):
            open_document(envelope("hop", b"body %d" % at, field(data), OTHER), "hop")


@pytest.mark.parametrize(
    "change",
    [
        lambda proof: proof[:-1],
        lambda proof: proof[:-32],
        lambda proof: proof + b"\0",
        lambda proof: proof + bytes(32),
        lambda proof: proof + proof[-32:],
        lambda proof: proof + bytes(32 * 12),
        lambda proof: proof[:68],
        lambda proof: proof[:67],
        lambda proof: proof[:65],
        lambda proof: proof[:64],
        lambda proof: proof[:63],
        lambda proof: b"",
        lambda proof: proof[:68] + proof[100:] + proof[68:100],
    ],
)
def test_a_path_that_is_cut_or_added_to_is_refused(change: Callable[[bytes], bytes]) -> None:
    for data in sign_all(KEY, documents(13)):
        open_document(data, "hop")
        changed = with_field(data, change(field(data)))
        assert changed != data
        with pytest.raises(REFUSED):
            open_document(changed, "hop")


def batch_by_hand(index: int, size: int, path: list[bytes], *, key: PrivateKey = KEY) -> bytes:
    """A batch envelope whose signature is right for whatever its path leads to, however it is made."""
    root, last, at = leaf("hop", b"body"), size - 1, index
    for sibling in path:
        while at == last and not at & 1 and last:
            at, last = at >> 1, last >> 1
        pair = sibling + root if at & 1 else root + sibling
        root, at, last = hashlib.sha256(b"\1" + pair).digest(), at >> 1, last >> 1
    head = size.to_bytes(2, "big") + root
    signature = key.sign(signing_input("batch", head))
    return envelope("hop", b"body", signature + place(index, size) + b"".join(path), key)


def test_a_batch_made_by_hand_is_good_when_it_has_the_one_form() -> None:
    siblings = [bytes([number]) * 32 for number in range(1, 13)]
    for index, size, length in [(0, 2, 1), (1, 2, 1), (2, 3, 1), (4, 5, 1), (0, 4096, 12), (4095, 4096, 12)]:
        assert open_document(batch_by_hand(index, size, siblings[:length]), "hop").body == b"body"


@pytest.mark.invariant("S2")
@pytest.mark.parametrize(
    ("index", "size", "length"),
    [
        (0, 1, 0),  # alone is plain
        (0, 1, 1),
        (0, 0, 0),
        (0, 0, 1),
        (2, 2, 1),
        (3, 2, 1),
        (0, 2, 0),
        (0, 2, 2),
        (2, 3, 2),
        (0, 3, 1),
        (0, 4097, 13),
        (4096, 4097, 1),
        (65534, 65535, 1),
        (0, 65535, 12),
    ],
)
def test_a_batch_of_another_form_is_refused_though_its_signature_is_right(index: int, size: int, length: int) -> None:
    siblings = [bytes([number]) * 32 for number in range(1, length + 1)]
    with pytest.raises(EnvelopeMalformed):
        open_document(batch_by_hand(index, size, siblings), "hop")


@pytest.mark.invariant("S2")
def test_the_form_is_looked_at_before_anything_is_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> bytes:
        raise AssertionError("something was hashed")

    data = batch_by_hand(0, 4097, [bytes(32)] * 13)
    monkeypatch.setattr(merkle, "leaf_hash", never)
    with pytest.raises(EnvelopeMalformed):
        open_document(data, "hop")


def test_a_length_in_more_bytes_than_it_takes_is_refused() -> None:
    data = sign_all(KEY, documents(2))[0]
    assert data[-102:-100] == b"\x2a\x64"
    longer = data[:-101] + b"\xe4\x00" + data[-100:]
    assert field(longer) == field(data)
    with pytest.raises(EnvelopeMalformed):
        open_document(longer, "hop")


# -- one signature is never of two things ------------------------------------------------------------------------------


@pytest.mark.invariant("S2")
def test_a_head_is_signed_in_a_domain_that_no_kind_has() -> None:
    assert "batch" not in MESSAGE_KINDS | DOCUMENT_KINDS
    path = [b"s" * 32]
    head = (2).to_bytes(2, "big") + hashlib.sha256(b"\1" + leaf("hop", b"body") + path[0]).digest()
    for kind in sorted(MESSAGE_KINDS | DOCUMENT_KINDS):
        as_plain = KEY.sign(signing_input(kind, head))
        with pytest.raises(SignatureInvalid):
            open_document(envelope("hop", b"body", as_plain + place(0, 2) + path[0]), "hop")
    good = KEY.sign(signing_input("batch", head))
    assert open_document(envelope("hop", b"body", good + place(0, 2) + path[0]), "hop").body == b"body"
    for kind in sorted(DOCUMENT_KINDS):
        with pytest.raises(SignatureInvalid):
            open_document(envelope(kind, head, good), kind)
    with pytest.raises(EnvelopeMalformed, match="no kind that is known"):
        open_document(envelope("batch", head, good), "hop")


@pytest.mark.invariant("S2")
def test_neither_an_inner_node_nor_the_head_passes_for_a_leaf() -> None:
    one, two = leaf("hop", b"body 0"), leaf("hop", b"body 1")
    signature, index, size, path = split(sign_all(KEY, documents(4))[0])
    assert path[0] == two
    for payload in (one + two, b"\1" + one + two, hashlib.sha256(b"\1" + one + two).digest()):
        for length in (1, 2):
            for where in (place(index, size), place(0, 2), place(0, 3)):
                with pytest.raises(REFUSED):
                    open_document(envelope("hop", payload, signature + where + b"".join(path[-length:])), "hop")


# -- what is remembered as verified ------------------------------------------------------------------------------------


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The messages whose signature is worked on, from now on."""
    real, worked_on = signing.verify, list[bytes]()

    def verify(public_key: bytes, signature: bytes, message: bytes) -> None:
        worked_on.append(message)
        real(public_key, signature, message)

    monkeypatch.setattr(signing, "verify", verify)
    return worked_on


def test_siblings_cost_one_verification(verified: list[bytes]) -> None:
    for data in sign_all(KEY, documents(50)):
        open_document(data, "hop")
    assert len(verified) == 1
    for data in sign_all(OTHER, documents(50)):
        open_document(data, "hop")
    assert len(verified) == 2


@pytest.mark.invariant("S2")
def test_nothing_that_was_not_verified_is_known(verified: list[bytes]) -> None:
    """Same head and another signature, or another signer: each part of what was verified is part of what is known."""
    data = sign_all(KEY, documents(4))[1]
    proof = field(data)
    open_document(data, "hop")
    for at in range(64):
        forged = proof[:at] + bytes([proof[at] ^ 1]) + proof[at + 1 :]
        for _ in range(2):
            with pytest.raises(SignatureInvalid):
                open_document(with_field(data, forged), "hop")
    with pytest.raises(SignatureInvalid):
        open_document(envelope("hop", b"body 1", proof, OTHER), "hop")
    others = field(sign_all(OTHER, documents(4))[1])
    with pytest.raises(SignatureInvalid):
        open_document(with_field(data, others), "hop")
    assert len(verified) == 1 + 2 * 64 + 2, "a refusal is not remembered either"


@pytest.mark.invariant("S2")
def test_what_is_refused_first_is_not_known_later() -> None:
    data = sign_all(KEY, documents(4))[1]
    forged = with_field(data, field(data)[:63] + bytes([field(data)[63] ^ 1]) + field(data)[64:])
    for _ in range(3):
        with pytest.raises(SignatureInvalid):
            open_document(forged, "hop")
    assert signed._verify_head.cache_info().currsize == 0
    open_document(data, "hop")
    with pytest.raises(SignatureInvalid):
        open_document(forged, "hop")
    assert signed._verify_head.cache_info().currsize == 1


@pytest.mark.invariant("S7")
def test_what_is_known_is_bounded_and_a_flood_costs_a_verification_each(verified: list[bytes]) -> None:
    first = sign_all(KEY, documents(2))
    open_document(first[0], "hop")
    most = signed._verify_head.cache_info().maxsize
    assert most == 1024
    for number in range(most + 10):
        open_document(sign_all(KEY, [unsigned_document("hop", b"%d %d" % (number, at)) for at in (0, 1)])[0], "hop")
    assert signed._verify_head.cache_info().currsize == most
    before = len(verified)
    open_document(first[1], "hop")
    assert len(verified) == before + 1, "what was forgotten is verified anew"


@pytest.mark.invariant("S2")
def test_the_body_is_not_read_before_the_batch_s_signature_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoMessage:
        def __init__(self) -> None:
            raise AssertionError("the payload was parsed")

    data = bytearray(sign_all(KEY, [message(0), message(1)])[0])
    data[-1] ^= 1
    monkeypatch.setattr(envelope_pb2, "Message", NoMessage)
    with pytest.raises(SignatureInvalid):
        open_message(bytes(data), MESSAGE_KINDS)
