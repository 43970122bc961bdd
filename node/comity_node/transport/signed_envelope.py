"""Signed envelopes: bytes that a peer has signed for one purpose.

https://github.com/libp2p/specs/blob/master/RFC/0002-signed-envelopes.md. The signature is over a domain, which says
what it is for, the type of the payload and the payload, each after its length; so what was signed as one thing is never
taken for another. The envelope brings the signer's public key along: who may sign is for the caller to say.
"""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.message import DecodeError

from comity import signing
from comity.errors import ProtocolError, SignatureInvalid
from comity.signing import PrivateKey
from comity_node.p2p.v1.circuit_pb2 import SignedEnvelope
from comity_node.transport.varint import encode_varint


@dataclass(frozen=True, slots=True)
class EnvelopeKind:
    """What an envelope is for.

    Attributes:
        domain: names the purpose, in the signature only.
        payload_type: a multicodec, in the envelope too.
    """

    domain: bytes
    payload_type: bytes

    def seal(self, key: PrivateKey, payload: bytes) -> bytes:
        """Return a payload, signed."""
        return SignedEnvelope(
            public_key=signing.libp2p_public_key(key.public_key),
            payload_type=self.payload_type,
            payload=payload,
            signature=key.sign(self._signed_bytes(payload)),
        ).SerializeToString(deterministic=True)

    def open(self, data: bytes) -> tuple[str, bytes]:
        """Verify an envelope of this kind.

        Args:
            data: the envelope; the caller bounds its length.

        Returns:
            The PeerId of who has signed it, and the payload.

        Raises:
            ProtocolError: it is malformed.
            SignatureInvalid: it is of another kind or of another key than Ed25519, or its signature does not verify.
        """
        try:
            envelope = SignedEnvelope.FromString(data)
        except DecodeError as error:
            raise ProtocolError("a signed envelope is malformed") from error
        if envelope.payload_type != self.payload_type:
            raise SignatureInvalid("a signed envelope of another kind")
        signer = signing.from_libp2p_public_key(envelope.public_key)
        signing.verify(signer, envelope.signature, self._signed_bytes(envelope.payload))
        return signing.peer_id(signer), envelope.payload

    def _signed_bytes(self, payload: bytes) -> bytes:
        parts = (self.domain, self.payload_type, payload)
        return b"".join(encode_varint(len(part)) + part for part in parts)
