"""Proposals, agreements and model updates that are not what they should be: refused, and no signature given away."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import trio

from comity.digest import sha256
from comity.envelope import sign_document
from comity.errors import ComityError
from comity.v1.agreement_pb2 import Obligations, Proposal, ProposalAnswer, Terms
from comity.v1.control_pb2 import AdmitUpdateRequest, ReleaseUpdateRequest, UpdateManifest
from comity.v1.task_pb2 import Receipt
from kit.documents import make_agreement, make_terms
from kit.hostile import concluded, refusal
from kit.lab import Lab, now_ms, run

ADA, BEA, CYD = (f"org{number:02}.example" for number in range(3))


@pytest.mark.invariant("S1")
def test_proposals_that_no_node_answers_with_its_signature(tmp_path: Path) -> None:
    lab = Lab(tmp_path)

    def proposal(*members: str, sign: bool = False, **changes: Any) -> bytes:
        fresh = {"issued_ms": now_ms(), "expires_ms": now_ms() + 600_000}
        terms = make_terms(lab.consortium, members, **{**fresh, **changes}).SerializeToString()
        return Proposal(terms=terms, sign=sign).SerializeToString()

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery, ADA, BEA)
        malformed = [
            b"\xff\xff",
            Proposal(terms=b"\xff\xff").SerializeToString(),
            b"",
            proposal(obligations=Obligations(onward="never", retain_seconds=2**63)),
            proposal(obligations=Obligations(onward="never", redact=[""])),
            proposal(obligations=Obligations(onward="never", generalize={"x": float("inf")})),
        ]
        for body in malformed:
            refusal(await lab.deliver(ADA, BEA, "proposal", body))
        strangers = Terms.FromString(Proposal.FromString(proposal()).terms)
        strangers.participants[2] = "zoe.example"
        unfit = [
            (proposal(initiator=CYD), "in the name of"),
            (proposal(ADA, CYD), "not among the participants"),
            (proposal(bundle_epoch=9), "epoch 9"),
            (proposal(consortium="elsewhere"), "'elsewhere'"),
            (proposal(dataset="others"), "no dataset"),
            (proposal(issued_ms=now_ms() - 2000, expires_ms=now_ms() - 1000), "expired"),
            (proposal(issued_ms=now_ms() + 300_000, expires_ms=now_ms() + 600_000), "has not begun"),
            (Proposal(terms=strangers.SerializeToString()).SerializeToString(), "not in the consortium: zoe.example"),
        ]
        for body, reason in unfit:
            receipt = await lab.deliver(ADA, BEA, "proposal", body)
            answer = ProposalAnswer.FromString(receipt.body)
            assert answer.WhichOneof("answer") == "reject", reason
            assert reason in answer.reject.reason
        good = await lab.deliver(ADA, BEA, "proposal", proposal())
        assert ProposalAnswer.FromString(good.body).WhichOneof("answer") == "ready"
        assert not lab.members[BEA].rows("SELECT 1 FROM promises")
        signed = await lab.deliver(ADA, BEA, "proposal", proposal(sign=True))
        assert ProposalAnswer.FromString(signed.body).WhichOneof("answer") == "accept"
        assert len(lab.members[BEA].rows("SELECT 1 FROM promises")) == 1

    run(main)
    assert not lab.members[BEA].rows("SELECT 1 FROM agreements")


@pytest.mark.invariant("S1")
def test_agreements_that_are_none(tmp_path: Path) -> None:
    lab = Lab(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery, ADA, BEA)
        lab.members[BEA].hold()
        fresh: dict[str, Any] = {"issued_ms": now_ms(), "expires_ms": now_ms() + 600_000}
        terms = make_terms(lab.consortium, **fresh)
        others = make_terms(lab.consortium, [ADA, CYD], **fresh)
        over = make_terms(lab.consortium, issued_ms=now_ms() - 2000, expires_ms=now_ms() - 1000)
        for body in (
            b"\xff\xff",
            b"",
            make_agreement(lab.consortium, terms, signers=[ADA, CYD]),
            make_agreement(lab.consortium, others),
            make_agreement(lab.consortium, over),
        ):
            assert refusal(await lab.deliver(ADA, BEA, "agreement", body))[0] == "agreement_violated"
        assert not lab.members[BEA].rows("SELECT 1 FROM agreements")
        data = make_agreement(lab.consortium, terms)
        for _ in range(2):
            assert (await lab.deliver(ADA, BEA, "agreement", data)).status == Receipt.STATUS_ACCEPTED
        assert len(lab.members[BEA].rows("SELECT 1 FROM agreements")) == 1

    run(main)


@pytest.mark.invariant("S5")
@pytest.mark.invariant("S1")
def test_updates_whose_manifest_is_not_for_here_and_now(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    arrays = sha256(b"arrays")

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery, ADA, BEA)
        agreed = await concluded(lab, ADA, BEA)
        updates = lab.members[ADA].up.runtime.updates
        bea = lab.consortium.nodes[BEA]

        def manifest(**changes: Any) -> UpdateManifest:
            made = UpdateManifest(
                organization=BEA,
                to_organization=ADA,
                agreement_digest=agreed.digest.hex(),
                federation="f",
                round=1,
                update_digest=arrays,
                private_examples=10,
                issued_ms=now_ms(),
                expires_ms=now_ms() + 60_000,
            )
            for name, value in changes.items():
                setattr(made, name, value)
            return made

        async def admit(made: bytes, *, signer: str = BEA, round_: int = 1, digest: bytes = arrays) -> UpdateManifest:
            identity = lab.consortium.nodes[signer]
            envelope = sign_document(bea.key, "update", made)
            request = AdmitUpdateRequest(
                manifest=envelope, chain=identity.chain, federation="f", round=round_, update_digest=digest
            )
            return await updates.admit(request)

        for changes in (
            {"organization": CYD},
            {"to_organization": CYD},
            {"agreement_digest": "00" * 32},
            {"agreement_digest": "no hex"},
            {"federation": "another"},
            {"round": 2},
            {"update_digest": sha256(b"other arrays")},
            {"issued_ms": now_ms() - 700_000, "expires_ms": now_ms() - 100_000},
            {"issued_ms": now_ms() + 200_000, "expires_ms": now_ms() + 300_000},
            {"expires_ms": now_ms() + 10**9},
        ):
            with pytest.raises(ComityError):
                await admit(manifest(**changes).SerializeToString())
        with pytest.raises(ComityError, match="not parse"):
            await admit(b"\xff\xff")
        with pytest.raises(ComityError, match="not signed by the node of its chain"):
            await admit(manifest().SerializeToString(), signer=CYD)
        with pytest.raises(ComityError):
            await updates.admit(AdmitUpdateRequest(manifest=os.urandom(64)))
        assert (await admit(manifest().SerializeToString())).organization == BEA
        with pytest.raises(ComityError, match="has had an update"):
            await admit(manifest().SerializeToString())
        for digest in ("no hex", "00" * 32, ""):
            request = ReleaseUpdateRequest(to_organization=BEA, agreement_digest=digest, federation="f", round=1)
            with pytest.raises(ComityError):
                await updates.release(request)

    run(main)
