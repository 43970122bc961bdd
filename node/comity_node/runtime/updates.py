"""Federated updates at the gate: released with a signed manifest, admitted against it, each once a round."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Literal

from google.protobuf.message import DecodeError

from comity.agreement import Agreed
from comity.digest import sha256
from comity.envelope import open_document, sign_document
from comity.errors import (
    AgreementError,
    EnvelopeMalformed,
    ReplayedMessage,
    StaleMessage,
    UnexpectedMessage,
    WrongAudience,
)
from comity.trust import Attested, NodeIdentity, TrustStore
from comity.v1.control_pb2 import AdmitUpdateRequest, ReleaseUpdateRequest, UpdateManifest
from comity_node.admission import Gate, Question
from comity_node.policy.model import Request
from comity_node.runtime.agreements import Agreements
from comity_node.storage import audit, journal
from comity_node.storage.database import Database

KIND = "update"
_LIFETIME_MS = 10 * 60_000
_SKEW_MS = 30_000
_MAX_FEDERATION = 128


class Updates:
    """What leaves and enters this organization as a model update."""

    def __init__(
        self, *, identity: NodeIdentity, trust: TrustStore, gate: Gate, agreements: Agreements, database: Database
    ) -> None:
        """Release and admit in the name of `identity`'s organization."""
        self._identity = identity
        self._trust = trust
        self._gate = gate
        self._agreements = agreements
        self._database = database

    async def release(self, request: ReleaseUpdateRequest) -> bytes:
        """Decide whether an update may leave, and return the signed manifest that goes with it.

        Raises:
            AgreementError: there is no such agreement, it is over, or the server does not take part.
            PolicyDenied: the policy says no.
            UnexpectedMessage: another update was released for this round before.
        """
        agreed = self._agreed(request.agreement_digest, request.to_organization)
        _check_name(request.federation)
        labels = {"round": request.round, "examples": request.private_examples + request.certified_examples}
        question = self._question("update.send", request.to_organization, agreed, request.update_digest, labels)
        decision = await self._gate.demand(question)
        await self._once("released", request.federation, request.round, request.to_organization, request.update_digest)
        now_ms = self._gate.now_ms()
        manifest = UpdateManifest(
            organization=self._identity.organization,
            to_organization=request.to_organization,
            agreement_digest=request.agreement_digest,
            federation=request.federation,
            round=request.round,
            update_digest=request.update_digest,
            private_examples=request.private_examples,
            certified_examples=request.certified_examples,
            rules=decision.rules,
            policy_digest=self._gate.policy.digest,
            issued_ms=now_ms,
            expires_ms=now_ms + _LIFETIME_MS,
        )
        return sign_document(self._identity.key, KIND, manifest.SerializeToString())

    async def admit(self, request: AdmitUpdateRequest) -> UpdateManifest:
        """Check an update that came in against its manifest and the policy; returns the manifest.

        1. Signature and chain. 2. It is for this organization, this federation and round, and these bytes. 3. It is
        fresh, and the first of its organization for the round. 4. Agreement. 5. Policy.

        Raises:
            TrustError, EnvelopeError: the manifest does not verify.
            AgreementError, PolicyDenied, UnexpectedMessage: it may not be used.
        """
        document = open_document(request.manifest, KIND)
        now_ms = self._gate.now_ms()
        sender = self._trust.verify_chain(list(request.chain), now_ms)
        if sender.public_key != document.signer:
            raise WrongAudience("the manifest is not signed by the node of its chain")
        try:
            manifest = UpdateManifest.FromString(document.body)
        except DecodeError as error:
            raise EnvelopeMalformed("the manifest does not parse") from error
        self._check_manifest(manifest, sender, request, now_ms)
        agreed = self._agreed(manifest.agreement_digest, sender.organization)
        labels = {"round": manifest.round, "examples": manifest.private_examples + manifest.certified_examples}
        question = self._question("update.receive", sender.organization, agreed, manifest.update_digest, labels)
        await self._gate.demand(question)
        await self._once("admitted", manifest.federation, manifest.round, sender.organization, manifest.update_digest)
        return manifest

    def _check_manifest(
        self, manifest: UpdateManifest, sender: Attested, request: AdmitUpdateRequest, now_ms: int
    ) -> None:
        if manifest.organization != sender.organization:
            raise WrongAudience(f"{sender.organization} signed a manifest of {manifest.organization}")
        if manifest.to_organization != self._identity.organization:
            raise WrongAudience(f"the update is for {manifest.to_organization}")
        if (manifest.federation, manifest.round) != (request.federation, request.round):
            raise UnexpectedMessage(f"the manifest is of {manifest.federation!r}, round {manifest.round}")
        if manifest.update_digest != request.update_digest:
            raise UnexpectedMessage("the manifest is about other arrays than those that came")
        if not manifest.issued_ms - _SKEW_MS <= now_ms < manifest.expires_ms <= manifest.issued_ms + _LIFETIME_MS:
            raise StaleMessage("the manifest is not fresh")

    def _agreed(self, digest: str, other: str) -> Agreed:
        try:
            agreed = self._agreements.get(bytes.fromhex(digest))
        except ValueError:
            raise AgreementError(f"{digest[:80]!r} is no agreement's digest: it is not hex") from None
        agreed.check_active(self._gate.now_ms())
        if other not in agreed.participants:
            raise AgreementError(f"{other} does not take part in agreement {digest[:12]}")
        return agreed

    def _question(self, action: str, other: str, agreed: Agreed, digest: bytes, labels: Mapping[str, int]) -> Question:
        request = Request(
            action=action,
            organization=other,
            role="trainer",
            purpose=agreed.terms.purpose,
            dataset=agreed.terms.dataset,
            kind="update",
            labels=labels,
        )
        return Question(request, digest if len(digest) == 32 else sha256(digest), agreed.digest)

    async def _once(
        self, direction: Literal["released", "admitted"], federation: str, round_: int, organization: str, digest: bytes
    ) -> None:
        now_ms = self._gate.now_ms()
        entry = audit.AuditEntry(
            kind="effect",
            action=f"update.{direction}",
            peer=organization,
            subject=digest,
            detail={"federation": federation, "round": round_},
        )

        def write(connection: sqlite3.Connection) -> journal.Added:
            added = journal.add_update(connection, direction, federation, round_, organization, digest, now_ms)
            if added is journal.Added.NEW:
                audit.append(connection, entry, now_ms)
            return added

        added = await self._database.transact(write)
        if added is journal.Added.DIFFERENT or (added is journal.Added.SAME and direction == "admitted"):
            raise ReplayedMessage(f"round {round_} of {federation!r} has had an update of {organization} already")


def _check_name(federation: str) -> None:
    if not 0 < len(federation) <= _MAX_FEDERATION:
        raise UnexpectedMessage(f"a federation's name has 1 to {_MAX_FEDERATION} characters")
