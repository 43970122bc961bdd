"""Nodes on the local network, by multicast DNS: for a laboratory, off unless `node.yaml` says `mdns: true`.

libp2p's form (https://github.com/libp2p/specs/blob/master/discovery/mdns.md): a service `_p2p._udp.local` under a
random name, with one TXT string `dnsaddr=MULTIADDR/p2p/PEERID` for each address. Anybody on the network can answer,
with anything: who is found is dialled at most, and still has to attest itself; what is no name of a service is passed
over. The random name is not probed for: it is nobody else's, and who says otherwise could keep a node from starting.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import trio
from zeroconf import Error as ZeroconfError
from zeroconf import IPVersion, ServiceBrowser, ServiceInfo, ServiceStateChange, Zeroconf

from comity.errors import ConfigError
from comity_node.protocol.kad import Contact
from comity_node.transport.address import parse_address

if TYPE_CHECKING:
    from trio_typing import TaskStatus

_log = logging.getLogger("comity.discovery")

SERVICE: Final = "_p2p._udp.local."
_KEY: Final = b"dnsaddr="
_MAX_ADDRESSES: Final = 16
#: Names that have been seen and not yet been looked at; over that they are dropped, and seen again later.
_MAX_WAITING: Final = 64
_LOOK_UP_MS: Final = 2000
#: Names that are looked at at a time: one that nobody answers for holds up no other.
_LOOK_UPS: Final = 4


class Mdns:
    """Tells the local network where this node is, and hears where others are."""

    def __init__(
        self,
        peer_id: str,
        addresses: Callable[[], Sequence[str]],
        on_found: Callable[[Contact], None],
        *,
        random_bytes: Callable[[int], bytes],
        interfaces: Sequence[str] = (),
    ) -> None:
        """Make it; `run` starts it.

        Args:
            peer_id: of this node.
            addresses: where it can be dialled, without /p2p.
            on_found: told of each peer that is named, and again when it says something new.
            random_bytes: for the name of the service, which says nothing about the node.
            interfaces: IP addresses of the interfaces to use; none: all.
        """
        self._peer_id, self._addresses, self._on_found = peer_id, addresses, on_found
        self._name = f"{random_bytes(20).hex()}.{SERVICE}"
        self._interfaces = list(interfaces)

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer and listen until cancelled.

        Raises:
            ConfigError: this machine has no network on which multicast works.
        """
        try:
            zeroconf = await trio.to_thread.run_sync(self._open)
        except (OSError, ZeroconfError) as error:
            raise ConfigError(f"mdns does not work here: {error}; set `mdns: false` in node.yaml") from error
        try:
            names = self._browse(zeroconf)
            await self._announce(zeroconf)
            task_status.started()
            async with trio.open_nursery() as nursery:
                for _ in range(_LOOK_UPS):
                    nursery.start_soon(self._look_up_all, zeroconf, names.clone())
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(zeroconf.close)

    async def _announce(self, zeroconf: Zeroconf) -> None:
        service = self._service()
        try:
            await trio.to_thread.run_sync(lambda: zeroconf.register_service(service, cooperating_responders=True))
        except (OSError, ZeroconfError) as error:  # others are still heard
            _log.warning("this node could not be announced on the local network: %r", error)

    async def _look_up_all(self, zeroconf: Zeroconf, names: trio.MemoryReceiveChannel[str]) -> None:
        async for name in names:
            try:
                text = await trio.to_thread.run_sync(_look_up, zeroconf, name)
            except (OSError, ValueError, ZeroconfError) as error:
                _log.debug("%.80r on the local network is no node: %r", name, error)
            else:
                self._take(text)

    def _open(self) -> Zeroconf:
        return Zeroconf(interfaces=self._interfaces, ip_version=IPVersion.V4Only) if self._interfaces else Zeroconf()

    def _browse(self, zeroconf: Zeroconf) -> trio.MemoryReceiveChannel[str]:
        """Listen for names of services, from zeroconf's own thread into a bounded queue."""
        send, receive = trio.open_memory_channel[str](_MAX_WAITING)
        token = trio.lowlevel.current_trio_token()

        def put(name: str) -> None:
            try:
                send.send_nowait(name)
            except (trio.WouldBlock, trio.BrokenResourceError):
                _log.debug("an announcement on the local network was dropped")

        def changed(name: str, state_change: ServiceStateChange, **_: object) -> None:
            if state_change is not ServiceStateChange.Removed and name != self._name:
                try:
                    token.run_sync_soon(put, name, idempotent=True)
                except trio.RunFinishedError:
                    _log.debug("an announcement came after the end")

        ServiceBrowser(zeroconf, SERVICE, handlers=[changed])
        return receive

    def _service(self) -> ServiceInfo:
        strings = [_KEY + f"{each}/p2p/{self._peer_id}".encode() for each in self._addresses()[:_MAX_ADDRESSES]]
        text = b"".join(bytes([len(each)]) + each for each in strings if len(each) < 256)
        return ServiceInfo(SERVICE, self._name, port=0, properties=text, server=f"{self._name.split('.')[0]}.local.")

    def _take(self, text: bytes) -> None:
        contact = read_strings(text)
        if contact is not None and contact.peer_id != self._peer_id:
            self._on_found(contact)


def _look_up(zeroconf: Zeroconf, name: str) -> bytes:
    """Ask for the text of a service; b"" if nobody answers. In a thread.

    Raises:
        zeroconf.Error, ValueError: the name is none that a service can have.
        OSError: there was no answer in time, or no network.
    """
    info = ServiceInfo(SERVICE, name)
    # The text mostly came with the name. Its answer says whether there was an address record, too, which nodes have
    # not: their addresses are in the text.
    if not info.load_from_cache(zeroconf) and not info.text:
        info.request(zeroconf, _LOOK_UP_MS)
    return info.text or b""


def read_strings(text: bytes) -> Contact | None:
    """Read the TXT record of a service: its peer, and the addresses of that peer that are well formed.

    Args:
        text: character strings, each after its length (RFC 1035, 3.3.14).

    Returns:
        None if it names no peer.
    """
    peer_id = ""
    addresses: list[str] = []
    while text:
        string, text = text[1 : 1 + text[0]], text[1 + text[0] :]
        if not string.startswith(_KEY) or len(addresses) >= _MAX_ADDRESSES:
            continue
        try:
            address = parse_address(string.removeprefix(_KEY).decode("ascii", "replace"))
        except ConfigError:
            continue  # of a transport that we do not have, or garbage
        if address.peer_id and address.peer_id == (peer_id or address.peer_id) and not address.is_wildcard:
            peer_id = address.peer_id
            addresses.append(address.without_peer)
    return Contact(peer_id, tuple(addresses)) if peer_id else None
