"""Mutual attestation: who is at the other end of a stream, before anything else is read from it.

A Hello is judged in these steps, the cheap ones first; the first that fails refuses it:

1. the version of the protocol;
2. the consortium is ours, the epoch of the trust bundle ours or next to ours, and an epoch that both know is the same;
3. the chain verifies against the bundle, now;
4. the chain's leaf holds the key that the transport has proved, and that key is not our own;
5. the addresses are few and well formed; those that are not for a peer to name (`may_dial`) are left out;
6. the stream is of a class that its protocol has, and its acceptor takes at least one call.

A new epoch does not reach all nodes in one moment: nodes whose bundles are one epoch apart link, if each is a member by
the other's bundle (step 3, on either side). Who was expelled is refused by whoever has the new one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from comity.errors import Busy, ComityError, ConfigError, PeerNotAttested, TrustError, UnexpectedMessage
from comity.trust import Attested, NodeIdentity, TrustStore
from comity.v1 import link_pb2
from comity_node.links.channel import Channel
from comity_node.links.limits import Window
from comity_node.protocol.session_events import Established, HelloReceived, Refused
from comity_node.transport.address import may_dial, parse_address
from comity_node.transport.base import Priority

VERSION = 2
#: Epochs that two nodes' trust bundles may be apart.
_OVERLAP = 1
MAX_ADDRESSES = 16
_CLASSES = {
    Priority.CONTROL: link_pb2.STREAM_CLASS_CONTROL,
    Priority.WORK: link_pb2.STREAM_CLASS_WORK,
    Priority.BULK: link_pb2.STREAM_CLASS_BULK,
}
_PRIORITIES = {value: priority for priority, value in _CLASSES.items()}
#: What a tunnel, which has no calls, says it takes.
NO_WINDOW = Window()


class HelloRefused(PeerNotAttested):
    """We refuse a peer's Hello: carries the code that tells it why."""

    def __init__(self, verdict: str, reason: str) -> None:
        self.verdict = verdict
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Greeting:
    """A Hello that was judged good.

    Attributes:
        attested: who it is.
        addresses: where it says it can be dialled.
        chain: its certificates, to verify again as time goes by.
        priority: what the stream is for.
        window: what it takes at once, if it is the acceptor.
    """

    attested: Attested
    addresses: tuple[str, ...]
    chain: tuple[bytes, ...]
    priority: Priority
    window: Window


Admit = Callable[[Greeting], None]


class Greeter:
    """Presents this node, and judges others."""

    def __init__(
        self,
        identity: NodeIdentity,
        trust: TrustStore,
        addresses: Callable[[], list[str]],
        now_ms: Callable[[], int],
        *,
        allow_private: bool,
    ) -> None:
        self._identity, self._trust = identity, trust
        self._addresses, self._now_ms = addresses, now_ms
        self._allow_private = allow_private
        #: The latest epoch that an attested peer's trust bundle has had.
        self.latest_epoch = 0

    def hello(self, priority: Priority = Priority.WORK, window: Window = NO_WINDOW) -> bytes:
        """Return our Hello for a stream of this class; as its acceptor, with what we take at once."""
        bundle = self._trust.bundle
        return link_pb2.Hello(
            version=VERSION,
            consortium=bundle.consortium,
            bundle_epoch=bundle.epoch,
            bundle_digest=bundle.digest,
            chain=self._identity.chain,
            addresses=self._addresses()[:MAX_ADDRESSES],
            stream_class=_CLASSES[priority],
            max_calls=window.calls,
            max_call_bytes=window.size,
        ).SerializeToString()

    def judge(self, data: bytes, remote_peer: str, classes: Collection[Priority], *, needs_window: bool) -> Greeting:
        """Judge a peer's Hello by the six steps above.

        Args:
            data: the encoded Hello.
            remote_peer: the PeerId that the transport has proved.
            classes: those of which the stream may be.
            needs_window: whether it has to take at least one call.

        Raises:
            HelloRefused: a step failed.
        """
        try:
            hello = link_pb2.Hello.FromString(data)
        except DecodeError as error:
            raise HelloRefused("protocol_error", "the Hello cannot be read") from error
        self._check_consortium(hello)
        try:
            attested = self._trust.verify_chain(tuple(hello.chain), self._now_ms())
        except TrustError as error:
            raise HelloRefused(error.code, str(error)) from error
        if attested.peer_id != remote_peer:
            raise HelloRefused("wrong_peer", f"the chain is that of {attested.peer_id}, not of {remote_peer}")
        if attested.peer_id == self._identity.peer_id:
            raise HelloRefused("wrong_peer", "a node does not link with itself")
        addresses = self.usable(hello.addresses)
        priority = _PRIORITIES.get(hello.stream_class)
        if priority is None or priority not in classes:
            raise HelloRefused("protocol_error", f"a stream of class {hello.stream_class} has no place here")
        window = Window(hello.max_calls, hello.max_call_bytes)
        if needs_window and not (window.calls and window.size):
            raise HelloRefused("protocol_error", "a stream on which no call is taken")
        self.latest_epoch = max(self.latest_epoch, hello.bundle_epoch)
        return Greeting(attested, addresses, tuple(hello.chain), priority, window)

    def usable(self, addresses: Sequence[str]) -> tuple[str, ...]:
        """Return those of a peer's own addresses that it may name, without /p2p.

        Raises:
            HelloRefused: one is malformed, or there are too many.
        """
        return _checked_addresses(addresses, allow_private=self._allow_private)

    def judge_again(self, greeting: Greeting) -> None:
        """Check that a chain that was good still is.

        Raises:
            PeerNotAttested: it has expired or was revoked, the trust bundle has expired, or there is another one by
                which the peer is no member.
        """
        try:
            self._trust.verify_chain(greeting.chain, self._now_ms())
        except TrustError as error:
            raise PeerNotAttested(str(error)) from error

    def _check_consortium(self, hello: link_pb2.Hello) -> None:
        bundle = self._trust.bundle
        if hello.version != VERSION:
            raise HelloRefused("wrong_version", f"protocol version {hello.version}; this node speaks {VERSION}")
        if hello.consortium != bundle.consortium:
            raise HelloRefused("wrong_consortium", f"this node belongs to the consortium {bundle.consortium!r}")
        if abs(hello.bundle_epoch - bundle.epoch) > _OVERLAP:
            raise HelloRefused(
                "wrong_epoch", f"trust bundle of epoch {hello.bundle_epoch}; this node's is of epoch {bundle.epoch}"
            )
        for known in (bundle, bundle.parent):
            if known is not None and (hello.bundle_epoch, hello.bundle_digest) == (known.epoch, known.digest):
                return
            if known is not None and hello.bundle_epoch == known.epoch:
                raise HelloRefused("wrong_bundle", f"another trust bundle of the same epoch {known.epoch}")


async def greet_as_opener(
    channel: Channel, greeter: Greeter, priority: Priority, *, calls: bool, admit: Admit = lambda _: None
) -> Greeting:
    """Present ourselves on a stream that we opened, and judge who answers.

    Args:
        channel: the stream.
        greeter: who judges.
        priority: what the stream is for; what we send on it is scheduled by that.
        calls: whether it is for calls: then the acceptor says how many it takes.
        admit: may refuse an attested peer for want of room (raises Busy).

    Raises:
        PeerNotAttested: either side refused the other; the message says which and why.
        Busy: the peer has no room for us, or we have none for it.
        LinkClosed: the stream broke.
        ProtocolError: the peer broke the protocol.
    """
    channel.stream.set_priority(priority)
    channel.session.greet(greeter.hello(priority))
    await channel.flush()
    match await channel.next_event():
        case HelloReceived(hello):
            greeting = await _judged(channel, greeter, hello, {priority}, needs_window=calls)
            await _admitted(channel, greeting, admit)
            channel.session.set_window(greeting.window.calls, greeting.window.size)
            channel.session.accept()
            await channel.flush()
            return greeting
        case Refused(code, reason):
            raise refused_by_peer(code, reason)
        case event:
            raise UnexpectedMessage(f"{type(event).__name__} instead of a Hello")


async def greet_as_acceptor(
    channel: Channel, greeter: Greeter, windows: Mapping[Priority, Window], admit: Admit = lambda _: None
) -> Greeting:
    """Judge who has opened a stream to us, then present ourselves.

    Args:
        channel: the stream.
        greeter: who judges.
        windows: the classes of which the stream may be, and what we take on it at once.
        admit: may refuse an attested peer for want of room (raises Busy).

    Raises:
        PeerNotAttested: either side refused the other.
        Busy: there is no room for the peer; it has been told.
        LinkClosed: the stream broke.
        ProtocolError: the peer broke the protocol.
    """
    event = await channel.next_event()
    if not isinstance(event, HelloReceived):
        raise UnexpectedMessage(f"{type(event).__name__} instead of a Hello")
    greeting = await _judged(channel, greeter, event.hello, windows, needs_window=False)
    await _admitted(channel, greeting, admit)
    window = windows[greeting.priority]
    channel.stream.set_priority(greeting.priority)
    channel.session.set_window(window.calls, window.size)
    channel.session.greet(greeter.hello(greeting.priority, window))
    await channel.flush()
    match await channel.next_event():
        case Established():
            return greeting
        case Refused(code, reason):
            raise refused_by_peer(code, reason)
        case other:
            raise UnexpectedMessage(f"{type(other).__name__} instead of an answer to our Hello")


def refused_by_peer(code: str, reason: str) -> ComityError:
    """Return what a peer's refusal of our Hello means here."""
    if code == Busy.code:
        return Busy(f"the peer has no room: {reason}", retry_after_ms=5000)
    return PeerNotAttested(f"the peer refused us ({code}): {reason}")


async def _judged(
    channel: Channel, greeter: Greeter, hello: bytes, classes: Collection[Priority], *, needs_window: bool
) -> Greeting:
    try:
        return greeter.judge(hello, channel.remote_peer, classes, needs_window=needs_window)
    except HelloRefused as error:
        await _refuse(channel, error.verdict, str(error))
        raise


async def _admitted(channel: Channel, greeting: Greeting, admit: Admit) -> None:
    try:
        admit(greeting)
    except Busy as error:
        await _refuse(channel, error.code, str(error))
        raise


async def _refuse(channel: Channel, code: str, reason: str) -> None:
    channel.session.refuse(code, reason)
    await channel.flush()


def _checked_addresses(addresses: Sequence[str], *, allow_private: bool) -> tuple[str, ...]:
    if len(addresses) > MAX_ADDRESSES:
        raise HelloRefused("protocol_error", f"more than {MAX_ADDRESSES} addresses")
    try:
        parsed = [parse_address(text) for text in addresses]
    except ConfigError as error:
        raise HelloRefused("protocol_error", str(error)) from error
    return tuple(each.without_peer for each in parsed if may_dial(each, allow_private=allow_private))
