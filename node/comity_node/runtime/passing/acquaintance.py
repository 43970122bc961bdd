"""Which nodes have been brought which agreements: each is brought once, however many deliveries wait for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from math import inf
from typing import Final, TypeAlias

import trio

from comity.errors import AgreementUnknown, ComityError, LinkClosed, LinkError

#: Brings (organization, PeerId, digest of) an agreement to a node, and tells whether that has it now.
Bring: TypeAlias = Callable[[str, str, bytes], Awaitable[bool]]

#: (node, agreement) of which it is remembered when it was brought and whether it was taken.
_KEPT: Final = 4_096
#: Seconds for which one that was not taken is not brought again.
_NOT_TAKEN_S: Final = 60.0
#: After so long such a node is asked again: somebody else may have brought it.
_ASK_AGAIN_MS: Final = 5_000


class Acquaintance:
    """Acquaints nodes with agreements that they do not know."""

    def __init__(self, bring: Bring) -> None:
        """Bring agreements by `bring`."""
        self._bring = bring
        self._bringing: dict[tuple[str, bytes], trio.Event] = {}
        self._brought: dict[tuple[str, bytes], tuple[float, bool]] = {}

    async def make(self, to: str, peer_id: str, digest: bytes, asked_s: float) -> None:
        """Bring an agreement to a node, unless another delivery has since that one was asked.

        Args:
            to: the organization.
            peer_id: its node, which did not know the agreement.
            digest: the agreement.
            asked_s: when the node was asked, by trio's clock; it may know it by now.

        Raises:
            AgreementUnknown: it does not take it.
            LinkError: it could not be brought.
        """
        key = (peer_id, digest)
        if (bringing := self._bringing.get(key)) is not None:
            await bringing.wait()
            return
        brought_s, was_taken = self._brought.get(key, (-inf, False))
        if was_taken and brought_s >= asked_s:
            return
        if was_taken or brought_s + _NOT_TAKEN_S <= asked_s:
            self._bringing[key] = trio.Event()
            try:
                was_taken = await self._bring(to, peer_id, digest)
            except LinkError:
                raise
            except ComityError as error:
                raise LinkClosed(f"the agreement could not be brought to {to}: {error}") from error
            finally:
                self._bringing.pop(key).set()
            if len(self._brought) >= _KEPT:
                self._brought.clear()
            self._brought[key] = (trio.current_time(), was_taken)
        if not was_taken:
            raise AgreementUnknown(f"a node of {to} does not take the agreement", retry_after_ms=_ASK_AGAIN_MS)
