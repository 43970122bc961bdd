"""An agreement in words, for people: its terms, who signed them, and who withdrew."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict

from comity.agreement import Withdrawn
from comity.certificate import MAX_SCORE
from comity.envelope import open_document
from comity.v1.agreement_pb2 import Agreement, Terms
from comity_node.cli.context import fields, table, timestamp

_NOTHING = "nothing beyond the review"


def terms_json(terms: Terms) -> dict[str, Any]:
    """Return terms as JSON: names as in a workflow, obligations as in the agreement's schema, scores from 0 to 1."""
    review = terms.review
    return {
        "id": terms.id,
        "revision": terms.revision,
        "consortium": terms.consortium,
        "bundle_epoch": terms.bundle_epoch,
        "initiator": terms.initiator,
        "participants": list(terms.participants),
        "purpose": terms.purpose,
        "dataset": terms.dataset,
        "records_per_organization": terms.records_per_organization,
        "batch_records": terms.batch_records,
        "repair_rounds": terms.repair_rounds,
        "lease_seconds": terms.lease_seconds,
        "review": {
            "eligible": review.eligible,
            "faulty": review.faulty,
            "quorum": review.quorum,
            "min_score": review.min_score / MAX_SCORE,
            "panel": review.panel,
            "commit_reveal": review.commit_reveal,
        },
        "obligations": _plain(MessageToDict(terms.obligations, preserving_proto_field_name=True)),
        "issued": timestamp(terms.issued_ms),
        "expires": timestamp(terms.expires_ms),
        "workflow_digest": terms.workflow_digest.hex(),
        "replaces": terms.replaces.hex(),
        "flow": json.loads(terms.flow) if terms.flow else None,
        "homes": list(terms.homes or terms.participants),
    }


def _plain(value: Any) -> Any:  # noqa: ANN401  (any JSON value)
    """Return JSON in which 64-bit numbers are numbers again: protobuf writes them as text."""
    if isinstance(value, dict):
        return {key: _plain(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def terms_text(terms: Terms) -> str:
    """Return terms as sentences."""
    review, others = terms.review, [name for name in terms.participants if name != terms.initiator]
    liars = f"{review.faulty} of them may lie" if review.faulty else "there are too few for one of them to lie"
    batch = min(terms.batch_records, terms.records_per_organization)
    lines = {
        "between": f"{terms.initiator}, who proposed it, and {_listed(others)}",
        "what for": f"{terms.purpose}, with {terms.dataset}",
        "makes": (
            f"{_listed(terms.homes) if terms.homes else 'each organization'} makes "
            f"{terms.records_per_organization} records at most, {batch} in a batch; "
            f"what fails is mended {terms.repair_rounds} times at most"
        ),
        "judges": (
            f"{review.quorum} of {_judges(terms)} have to give a record {review.min_score / MAX_SCORE:g} "
            f"or more of 1; {liars}"
        ),
        "lease": f"who holds a batch for over {terms.lease_seconds} s is replaced",
        "obliges to": _obligations(terms),
        "from": f"{timestamp(terms.issued_ms)} until {timestamp(terms.expires_ms)}",
        "consortium": f"{terms.consortium}, epoch {terms.bundle_epoch}",
    }
    if terms.flow:
        lines["step by step"] = _flow(json.loads(terms.flow))
    if terms.replaces:
        lines["replaces"] = f"agreement {terms.replaces.hex()[:12]}"
    return fields(lines)


def _flow(flow: dict[str, Any]) -> str:
    """Return the steps of a flow in a line; the whole of it is in the JSON."""
    steps = flow.get("steps", {})
    first = flow.get("start", "")
    names = sorted(steps, key=lambda name: (name != first, name))
    ends = "then it is reviewed" if flow.get("finish", "certify") == "certify" else "without a review"
    return f"{'; '.join(f'{name}: {_step(steps[name])}' for name in names)}; {ends}"


def _step(step: dict[str, Any]) -> str:
    if "dialogue" in step:
        return f"{' and '.join(_step(turn) for turn in step['dialogue'])} in {step['turns']} turns at most"
    at = step.get("at", "any")
    return f"{step['skill']} at {', '.join(at) if isinstance(at, list) else at}"


def _obligations(terms: Terms) -> str:
    owed = _plain(MessageToDict(terms.obligations, preserving_proto_field_name=True))
    return "; ".join(f"{name} {_value(value)}" for name, value in owed.items()) or _NOTHING


def _value(value: Any) -> str:  # noqa: ANN401  (any JSON value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {_value(each)}" for key, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _judges(terms: Terms) -> str:
    """Who votes on a record, and how."""
    review = terms.review
    sealed = ", who commit to their scores before any is shown," if review.commit_reveal else ""
    if not review.panel:
        return f"the {review.eligible} others{sealed}"
    others = len(terms.participants) - 1
    return f"a panel of {review.panel}, drawn for each batch from the {others} others{sealed or ','}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def signatures(agreement: Agreement) -> list[dict[str, str]]:
    """Return who signed an agreement, and the PeerId of the node that did; the signatures themselves are verified."""
    return [
        {"organization": one.organization, "peer_id": open_document(one.envelope, "terms").peer_id}
        for one in agreement.signatures
    ]


def withdrawals(withdrawn: Sequence[Withdrawn]) -> list[dict[str, str]]:
    """Return who withdrew, when and why."""
    return [{"organization": one.organization, "at": timestamp(one.at_ms), "reason": one.reason} for one in withdrawn]


def signed_text(signed: Sequence[dict[str, str]], ended: Sequence[dict[str, str]]) -> str:
    """Return tables of who signed and who withdrew."""
    parts = [table([(one["organization"], one["peer_id"]) for one in signed], ("SIGNED BY", "ITS NODE"))]
    if ended:
        rows = [(one["organization"], one["at"], one["reason"] or "-") for one in ended]
        parts.append(table(rows, ("WITHDRAWN BY", "AT", "REASON")))
    return "\n\n".join(parts)
