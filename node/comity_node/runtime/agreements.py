"""The agreements that this node takes part in: from the journal, verified once, kept in memory."""

from __future__ import annotations

from collections.abc import Callable

from comity.agreement import Agreed, open_agreement
from comity.errors import AgreementError
from comity.trust import TrustStore
from comity_node.storage import audit, journal
from comity_node.storage.database import Database

_MAX_AGREEMENTS = 1_000


class Agreements:
    """Agreements by digest."""

    def __init__(self, database: Database, trust: TrustStore, organization: str, now_ms: Callable[[], int]) -> None:
        """Keep those of `organization`."""
        self._database = database
        self._trust = trust
        self._organization = organization
        self._now_ms = now_ms
        self._known: dict[bytes, tuple[Agreed, bytes]] = {}

    async def load(self) -> None:
        """Read what an earlier run left.

        Raises:
            AgreementError: a stored agreement does not verify against the bundle.
        """
        for stored in await self._database.read(lambda c: journal.list_agreements(c, limit=_MAX_AGREEMENTS)):
            self._known[stored.digest] = (open_agreement(stored.agreement, self._trust), stored.agreement)

    def all(self) -> list[Agreed]:
        """Return all agreements of this node."""
        return [agreed for agreed, _ in self._known.values()]

    def get(self, digest: bytes) -> Agreed:
        """Return the agreement with this digest.

        Raises:
            AgreementError: this node takes part in no such agreement.
        """
        return self._find(digest)[0]

    def raw(self, digest: bytes) -> bytes:
        """Return the agreement's bytes, with all signatures.

        Raises:
            AgreementError: this node takes part in no such agreement.
        """
        return self._find(digest)[1]

    def _find(self, digest: bytes) -> tuple[Agreed, bytes]:
        try:
            return self._known[digest]
        except KeyError:
            raise AgreementError(f"no agreement {digest.hex()[:12]} here") from None

    async def add(self, data: bytes) -> Agreed:
        """Verify a concluded agreement and keep it; the same one twice is the same as once.

        Raises:
            AgreementError: it does not verify, is over, or this organization does not take part.
        """
        agreed = open_agreement(data, self._trust)
        now_ms = self._now_ms()
        agreed.check_active(now_ms)
        if self._organization not in agreed.participants:
            raise AgreementError(f"{self._organization} does not take part in this agreement")
        if agreed.digest in self._known:
            return self._known[agreed.digest][0]
        if len(self._known) >= _MAX_AGREEMENTS:
            raise AgreementError(f"this node keeps at most {_MAX_AGREEMENTS} agreements")
        terms = agreed.terms
        stored = journal.AgreementRow(
            digest=agreed.digest,
            agreement=data,
            initiator=terms.initiator,
            purpose=terms.purpose,
            dataset=terms.dataset,
            expires_ms=terms.expires_ms,
            state="active",
            created_ms=now_ms,
        )
        entry = audit.AuditEntry(
            kind="effect",
            action="agreement.concluded",
            peer=terms.initiator,
            subject=agreed.digest,
            agreement=agreed.digest,
            detail={"participants": list(terms.participants), "purpose": terms.purpose, "dataset": terms.dataset},
        )
        await self._database.transact(lambda c: (audit.append(c, entry, now_ms), journal.put_agreement(c, stored)))
        self._known[agreed.digest] = (agreed, data)
        return agreed
