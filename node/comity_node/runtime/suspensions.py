"""Who is proven to have lied, and what this node does about it: it does not ask them any more, for a while.

Only evidence that verifies (`comity.evidence`: two documents of one signer that contradict each other) suspends
anybody; what somebody says without it does nothing. A suspended organization is not asked to review by this node, is
offered no new agreement, is given no task of a flow, and counts as unreliable; its agreements stay in force, and its
votes where it was asked count as ever: certificates follow the agreement and nobody's opinion.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

import trio

from comity.errors import ComityError, TrustError
from comity.evidence import Proven, verify_evidence
from comity.trust import TrustStore
from comity_node.admission import Gate, Question
from comity_node.policy.model import Request
from comity_node.runtime.patience import patiently
from comity_node.runtime.seams import TaskStatus
from comity_node.storage import evidence
from comity_node.storage.database import Database

log = logging.getLogger(__name__)

#: For how long, unless `node.yaml` says otherwise.
SUSPENSION_MS: Final = 30 * 24 * 3600 * 1000
#: Evidence that was heard of and waits to be written down; what is beyond comes again with the news.
_MAX_UNWRITTEN: Final = 64
_WARNED: Final = 8


class Suspensions:
    """Keeps evidence, and knows who is suspended."""

    def __init__(
        self, *, trust: TrustStore, database: Database, now_ms: Callable[[], int], suspension_ms: int, gate: Gate
    ) -> None:
        """Suspend for `suspension_ms` milliseconds from when an evidence is known here."""
        self._trust = trust
        self._database = database
        self._now_ms = now_ms
        self._suspension_ms = suspension_ms
        self._gate = gate
        self._until: dict[str, int] = {}
        self._kinds: dict[str, str] = {}
        #: What is on disk, by organization: it has suspended its signer once, and does not again.
        self._known: dict[str, set[tuple[str, bytes]]] = {}
        self._unwritten: OrderedDict[tuple[str, str, bytes], Proven] = OrderedDict()
        self._work = trio.Event()

    async def load(self) -> None:
        """Read what an earlier run has written down."""
        now_ms = self._now_ms()
        rows = await self._database.read(evidence.list_evidence)
        self._until = await self._database.read(lambda c: evidence.suspended(c, now_ms))
        self._kinds = {row.organization: row.kind for row in reversed(rows)}
        for row in rows:
            self._known.setdefault(row.organization, set()).add((row.kind, row.subject))

    def now(self) -> frozenset[str]:
        """Who is suspended at this moment."""
        now_ms = self._now_ms()
        return frozenset(organization for organization, until_ms in self._until.items() if until_ms > now_ms)

    def warnings(self) -> list[str]:
        """What a steward should know."""
        lines = []
        for organization in sorted(self.now())[:_WARNED]:
            until = datetime.fromtimestamp(self._until[organization] / 1000, UTC)
            lines.append(
                f"{organization} has contradicted itself ({self._kinds.get(organization, 'votes')}) and is asked for"
                f" nothing new until {until:%Y-%m-%d %H:%M}Z; both signed documents are kept: comity audit evidence"
            )
        return lines

    async def found(self, raw: bytes) -> bool:
        """Take what may be evidence; False, and nothing happens, if it proves nothing."""
        try:
            proven = await trio.to_thread.run_sync(verify_evidence, raw, self._trust)
        except ComityError as error:
            log.info("no evidence: %s", error)
            return False
        await self._write(proven)
        return True

    def heard(self, proven: Proven) -> None:
        """Take a verified evidence out of the news: it holds at once, and is written down as soon as may be.

        What is known here has no effect any more: a lie suspends once, however long it is told of. Nor has another lie,
        while its signer is suspended for most of the time: whoever makes evidence against itself fills no disk with it.
        """
        if self._until.get(proven.organization, 0) - self._now_ms() > self._suspension_ms // 2:
            return
        if (proven.kind, proven.subject) in self._known.get(proven.organization, ()):
            return
        self._suspend(proven)
        if len(self._unwritten) < _MAX_UNWRITTEN:
            self._unwritten[(proven.organization, proven.kind, proven.subject)] = proven
            self._work.set()

    async def told(self) -> Sequence[bytes]:
        """Return the evidence that every member may hear of; nothing, if there is one who may not: news go to all.

        Of each organization that is suspended it is the newest: one is enough.
        """
        rows = await self._database.read(evidence.list_evidence)
        now_ms = self._now_ms()
        newest: dict[str, bytes] = {}
        for row in rows:
            if row.until_ms > now_ms:
                newest.setdefault(row.organization, row.proof)
        proofs = await trio.to_thread.run_sync(lambda: [one for one in newest.values() if self._still_verifies(one)])
        if not proofs:
            return ()
        me = self._gate.identity.organization
        others = sorted(set(self._trust.bundle.members) - {me})
        decisions = await self._gate.decide([Question(Request("news.send", each)) for each in others])
        return proofs if all(decision.allowed for decision in decisions) else ()

    def _still_verifies(self, proof: bytes) -> bool:
        try:
            verify_evidence(proof, self._trust)
        except TrustError:  # its signer has left the bundle: others could not check it
            return False
        return True

    async def run(self, *, task_status: TaskStatus = trio.TASK_STATUS_IGNORED) -> None:
        """Write down what is heard, until cancelled."""
        task_status.started()
        while True:
            while self._unwritten:
                _, proven = self._unwritten.popitem(last=False)
                await patiently(lambda: self._write(proven), f"evidence against {proven.organization}")  # noqa: B023
            self._work = trio.Event()
            await self._work.wait()

    async def _write(self, proven: Proven) -> None:
        now_ms, suspension_ms = self._now_ms(), self._suspension_ms
        new = await self._database.transact(lambda c: evidence.add_evidence(c, proven, now_ms, suspension_ms))
        known = self._known.setdefault(proven.organization, set())
        if len(known) >= evidence.PER_ORGANIZATION:
            known.clear()  # who lies so often: what is on disk says what is new
        known.add((proven.kind, proven.subject))
        if new:
            log.warning("%s has contradicted itself: %s", proven.organization, proven.kind)
            self._suspend(proven)

    def _suspend(self, proven: Proven) -> None:
        self._kinds[proven.organization] = proven.kind
        self._until[proven.organization] = self._now_ms() + self._suspension_ms
