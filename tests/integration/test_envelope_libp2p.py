"""Our envelopes and py-libp2p's are the same thing (RFC 0002): each verifies what the other signed."""

from __future__ import annotations

from typing import Any

import pytest

from comity.envelope import open_document, sign_document
from comity.errors import SignatureInvalid
from comity.signing import PrivateKey

ed25519 = pytest.importorskip("libp2p.crypto.ed25519")
libp2p_envelope: Any = pytest.importorskip("libp2p.peer.envelope")

KEY = PrivateKey(bytes(range(32)))
DOMAIN = "comity/v1/hop"
PAYLOAD_TYPE = b"/comity/v1/hop"


@pytest.mark.parametrize("size", [0, 1, 200, 20_000])
def test_py_libp2p_verifies_ours(size: int) -> None:
    envelope = libp2p_envelope.unmarshal_envelope(sign_document(KEY, "hop", b"x" * size))
    envelope.validate(DOMAIN)
    assert (envelope.payload_type, envelope.raw_payload) == (PAYLOAD_TYPE, b"x" * size)
    assert envelope.public_key.to_bytes() == KEY.public_key
    with pytest.raises(ValueError, match="Invalid envelope signature"):
        envelope.validate("comity/v1/review")


@pytest.mark.parametrize("size", [0, 1, 200, 20_000])
def test_we_verify_py_libp2p_s(size: int) -> None:
    pair = ed25519.create_new_key_pair(bytes(range(32)))
    unsigned = libp2p_envelope.make_unsigned(DOMAIN, PAYLOAD_TYPE, b"x" * size)
    signature = pair.private_key.sign(unsigned)
    envelope = libp2p_envelope.Envelope(pair.public_key, PAYLOAD_TYPE, b"x" * size, signature)
    document = open_document(envelope.marshal_envelope(), "hop")
    assert (document.signer, document.body) == (KEY.public_key, b"x" * size)
    envelope.raw_payload = b"y" + b"x" * size
    with pytest.raises(SignatureInvalid):
        open_document(envelope.marshal_envelope(), "hop")
