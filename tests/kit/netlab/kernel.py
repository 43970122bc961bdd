"""What the lab asks of Linux, without external programs: network namespaces, TUN devices, addresses, routes.

Numbers from linux/if_tun.h, linux/sockios.h, linux/sched.h and linux/if.h; they are the same on x86-64 and aarch64.
A namespace lives as long as a descriptor of it or a process in it: nothing is left behind when both are gone.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_TUN = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_IFF_UP = 0x1
_SIOCADDRT = 0x890B
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_SIOCSIFADDR, _SIOCSIFNETMASK = 0x8916, 0x891C
_SIOCSIFMTU, _SIOCSIFTXQLEN = 0x8922, 0x8943
_RTF_UP = 0x1
_QUEUE = 1000
DEVICE: Final = "wan0"

_CAP_NET_ADMIN, _CAP_SYS_ADMIN = 12, 21


class _Route(ctypes.Structure):
    """`struct rtentry` of linux/route.h."""

    _fields_ = (
        ("pad1", ctypes.c_ulong),
        ("destination", ctypes.c_ubyte * 16),
        ("gateway", ctypes.c_ubyte * 16),
        ("mask", ctypes.c_ubyte * 16),
        ("flags", ctypes.c_ushort),
        ("pad2", ctypes.c_short),
        ("pad3", ctypes.c_ulong),
        ("pad4", ctypes.c_void_p),
        ("metric", ctypes.c_short),
        ("device", ctypes.c_char_p),
        ("mtu", ctypes.c_ulong),
        ("window", ctypes.c_ulong),
        ("irtt", ctypes.c_ushort),
    )


def has_privileges() -> bool:
    """Whether this process has the capabilities that a lab takes, and there is a TUN device."""
    if not (sys.platform == "linux" and os.path.exists(_TUN)):
        return False
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        effective = next((int(line.split()[1], 16) for line in status if line.startswith("CapEff:")), 0)
    return all(effective >> bit & 1 for bit in (_CAP_NET_ADMIN, _CAP_SYS_ADMIN))


def unavailable() -> str:
    """Return why there can be no lab here; "" if there can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if not os.path.exists(_TUN):
        return f"there is no {_TUN}"
    if not has_privileges():
        return "network namespaces take CAP_SYS_ADMIN and CAP_NET_ADMIN (root)"
    try:
        namespace, tun = new_site("10.0.0.1")
    except OSError as error:
        return f"the kernel refuses a network namespace with a TUN device: {error}"
    os.close(tun)
    os.close(namespace)
    return ""


def new_site(address: str, *, mtu: int = 1500) -> tuple[int, int]:
    """Make a network namespace whose only way out is a TUN device.

    Args:
        address: of the device.
        mtu: bytes of its largest packet.

    Returns:
        Descriptors of the namespace and of the TUN device (non-blocking; one IP packet each read and write).

    Raises:
        OSError: the kernel refuses.
    """

    def build() -> tuple[int, int]:
        _check(_libc().unshare(_CLONE_NEWNET))
        namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        tun = -1
        try:
            tun = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
            _configure(address, mtu)
        except OSError:
            if tun >= 0:
                os.close(tun)
            os.close(namespace)
            raise
        return namespace, tun

    return _in_a_thread(build)


def inside(namespace: int, function: Callable[[], T]) -> T:
    """Call a function in a thread that has entered a namespace: sockets that it makes stay in it.

    Raises:
        OSError: the namespace cannot be entered; and whatever the function raises.
    """

    def run() -> T:
        enter(namespace)
        return function()

    return _in_a_thread(run)


def enter(namespace: int) -> None:
    """Move the calling thread into a network namespace.

    Raises:
        OSError: the kernel refuses.
    """
    _check(_libc().setns(namespace, _CLONE_NEWNET))


def _configure(address: str, mtu: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        _up(control, "lo")
        _ioctl(control, _SIOCSIFADDR, DEVICE, _sockaddr(address))
        _ioctl(control, _SIOCSIFNETMASK, DEVICE, _sockaddr("255.255.255.255"))
        _ioctl(control, _SIOCSIFMTU, DEVICE, struct.pack("i", mtu))
        _ioctl(control, _SIOCSIFTXQLEN, DEVICE, struct.pack("i", _QUEUE))
        _up(control, DEVICE)
        everywhere = _sockaddr("0.0.0.0")
        route = _Route(flags=_RTF_UP, device=DEVICE.encode())
        for name in ("destination", "gateway", "mask"):
            ctypes.memmove(getattr(route, name), everywhere, len(everywhere))
        fcntl.ioctl(control, _SIOCADDRT, bytes(route))


def _up(control: socket.socket, device: str) -> None:
    answer = _ioctl(control, _SIOCGIFFLAGS, device, b"")
    flags = struct.unpack_from("H", answer, 16)[0]
    _ioctl(control, _SIOCSIFFLAGS, device, struct.pack("H", flags | _IFF_UP))


def _ioctl(control: socket.socket, request: int, device: str, value: bytes) -> bytes:
    """Call with a `struct ifreq`."""
    return fcntl.ioctl(control, request, struct.pack("16s24s", device.encode(), value))


def _sockaddr(address: str) -> bytes:
    return struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(address))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _in_a_thread(function: Callable[[], T]) -> T:
    """Call a function in a thread of its own: a namespace is a thread's, and ours stays where it is."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001 - handed to the caller, whatever it is
            errors.append(error)

    thread = threading.Thread(target=run, name="netlab")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
