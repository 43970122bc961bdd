"""identify: what a peer tells about itself, and where it sees us.

https://github.com/libp2p/specs/blob/master/identify/README.md. Comity needs of it only the observed address; the rest
is for libp2p peers of other kinds. Nothing in it is believed: who a peer is its key has proved, and what it may do
the attestation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import trio
from google.protobuf.message import DecodeError

from comity.errors import LinkClosed, ProtocolError
from comity.signing import libp2p_public_key
from comity_node.p2p.v1.identify_pb2 import Identify
from comity_node.transport.address import Address
from comity_node.transport.base import ByteStream, StreamHandler
from comity_node.transport.messages import MessageStream
from comity_node.transport.multiaddr import decode_known, encode_multiaddr
from comity_node.transport.varint import delimit

IDENTIFY: Final = "/ipfs/id/1.0.0"
#: Others put a signed record of their addresses in, too.
MAX_MESSAGE: Final = 32 * 1024
_PROTOCOL_VERSION: Final = "ipfs/0.1.0"
_MAX_ADDRESSES: Final = 32
_MAX_PROTOCOLS: Final = 64
_MAX_NAME: Final = 128
_ANSWER_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Identity:
    """What a peer says about itself.

    Attributes:
        agent: its software.
        addresses: where it listens; those that Comity cannot dial are left out.
        protocols: what it serves.
        observed: where it sees us; None if it does not say.
        public_key: a libp2p PublicKey message.
    """

    agent: str = ""
    addresses: tuple[Address, ...] = ()
    protocols: tuple[str, ...] = ()
    observed: Address | None = None
    public_key: bytes = b""


def encode_identity(identity: Identity) -> bytes:
    """Return the message, after its length."""
    message = Identify(
        public_key=identity.public_key,
        listen_addrs=[encode_multiaddr(each) for each in identity.addresses[:_MAX_ADDRESSES]],
        protocols=identity.protocols[:_MAX_PROTOCOLS],
        protocol_version=_PROTOCOL_VERSION,
        agent_version=identity.agent,
    )
    if identity.observed is not None:
        message.observed_addr = encode_multiaddr(identity.observed)
    return delimit(message.SerializeToString(deterministic=True))


def decode_identity(data: bytes) -> Identity:
    """Read a message, without its length; of lists that are too long the beginning.

    Raises:
        ProtocolError: it is malformed.
    """
    try:
        message = Identify.FromString(data)
    except DecodeError as error:
        raise ProtocolError("the peer's identify message is malformed") from error
    observed = decode_known([message.observed_addr]) if message.observed_addr else []
    return Identity(
        agent=message.agent_version[:_MAX_NAME],
        addresses=tuple(decode_known(message.listen_addrs[:_MAX_ADDRESSES])),
        protocols=tuple(name[:_MAX_NAME] for name in message.protocols[:_MAX_PROTOCOLS]),
        observed=observed[0] if observed else None,
        public_key=message.public_key[:_MAX_NAME],
    )


def identify_handler(
    public_key: bytes,
    agent: str,
    *,
    addresses: Callable[[], Sequence[Address]],
    protocols: Callable[[], Sequence[str]],
    observed: Callable[[ByteStream], Address | None],
) -> StreamHandler:
    """Return what serves `IDENTIFY`.

    Args:
        public_key: our 32-byte Ed25519 key.
        agent: our software, such as `comity/1.0.0`.
        addresses: where we can be dialled.
        protocols: what we serve to whoever asks.
        observed: where we see the other end of a stream.
    """

    async def handle(stream: ByteStream) -> None:
        identity = Identity(
            agent, tuple(addresses()), tuple(protocols()), observed(stream), libp2p_public_key(public_key)
        )
        with trio.fail_after(_ANSWER_S):
            await stream.send(encode_identity(identity))
            await stream.aclose()

    return handle


async def ask_identity(stream: ByteStream) -> Identity:
    """Read what the peer says on a stream that was opened for `IDENTIFY`, and close it.

    Raises:
        ProtocolError: the peer's message is malformed or too long.
        LinkClosed: the stream broke, or the peer has said nothing for ten seconds.
    """
    try:
        with trio.fail_after(_ANSWER_S):
            identity = decode_identity(await MessageStream(stream, MAX_MESSAGE).receive())
            await stream.aclose()
    except trio.TooSlowError as error:
        stream.reset()
        raise LinkClosed("the peer has not identified itself in time") from error
    except BaseException:  # also a cancellation leaves no stream behind; raised again
        stream.reset()
        raise
    return identity
