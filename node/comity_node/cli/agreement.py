"""`comity agreement`: what this organization has agreed to, how to end or amend it, and how to prove it to others."""

from __future__ import annotations

import argparse
import base64
import binascii
import json
from collections.abc import Sequence
from pathlib import Path

from comity.agreement import Agreed, Withdrawn, open_document_of_agreement, parse_terms
from comity.bundle import load_bundle
from comity.client import AgreementInfo
from comity.errors import AgreementError, ConfigError
from comity.trust import TrustStore
from comity.v1.agreement_pb2 import Agreement, AgreementDocument
from comity_node.cli import agreement_words as words
from comity_node.cli.commands import Argument, Command, argument
from comity_node.cli.context import Context, as_json, fields, read_bytes, table, timestamp, write_new
from comity_node.cli.node_client import CONTROL, connected
from comity_node.cli.workflow import read_document

_FORMAT = "comity-agreement-1"
_MAX_FILE = 4 << 20


def _list(context: Context, arguments: argparse.Namespace) -> None:
    with connected(context, arguments) as node:
        found = node.agreements()
    rows = []
    for each in found:
        terms = parse_terms(each.terms).terms
        rows.append(
            (
                each.digest[:16], each.state, terms.initiator, len(terms.participants), terms.purpose, terms.dataset,
                timestamp(terms.expires_ms),
            )
        )  # fmt: skip
    headings = ("AGREEMENT", "STATE", "INITIATOR", "PARTICIPANTS", "PURPOSE", "DATASET", "EXPIRES")
    context.emit([_json(each) for each in found], table(rows, headings))


def _json(info: AgreementInfo) -> dict[str, object]:
    return {
        "digest": info.digest,
        "state": info.state,
        "at_ms": info.at_ms,
        "terms": words.terms_json(parse_terms(info.terms).terms),
        "withdrawals": [
            {"organization": one.organization, "at": timestamp(one.at_ms), "reason": one.reason}
            for one in info.withdrawals
        ],
    }


def _show(context: Context, arguments: argparse.Namespace) -> None:
    with connected(context, arguments) as node:
        info = node.agreement(arguments.agreement)
    answer, terms = _json(info), parse_terms(info.terms).terms
    lines = [fields({"agreement": info.digest, "id": terms.id, "state": info.state}), words.terms_text(terms)]
    if info.document:
        signed = words.signatures(Agreement.FromString(AgreementDocument.FromString(info.document).agreement))
        answer["signatures"] = signed
        ended = [
            {"organization": one.organization, "at": timestamp(one.at_ms), "reason": one.reason}
            for one in info.withdrawals
        ]
        lines.append(words.signed_text(signed, ended))
    else:
        lines.append("this node has signed it; whether everybody has, it has not heard yet")
    context.emit(answer, "\n\n".join(lines))


def _withdraw(context: Context, arguments: argparse.Namespace) -> None:
    with connected(context, arguments) as node:
        digest = node.withdraw_agreement(arguments.agreement, arguments.reason)
    told = "withdrawn: nothing passes under it from now on; the others are told, and what is certified stays"
    context.emit({"digest": digest, "withdrawn": True}, f"{digest}\n{told}")


def _amend(context: Context, arguments: argparse.Namespace) -> None:
    changes = read_document(arguments.changes, "the amendment")
    with connected(context, arguments) as node:
        workflow_id = node.amend_agreement(arguments.agreement, changes)
    how = f"the others are asked to sign it; see `comity workflow show {workflow_id}`"
    context.emit({"workflow_id": workflow_id}, f"{workflow_id}\n{how}")


def _export(context: Context, arguments: argparse.Namespace) -> None:
    with connected(context, arguments) as node:
        info = node.agreement(arguments.agreement)
    if not info.document:
        raise AgreementError(f"agreement {info.digest[:16]} is not concluded, as far as this node knows")
    trust = _trust(context, arguments)
    agreed, withdrawn = open_document_of_agreement(info.document, trust)
    write_new(arguments.out, _render(agreed, withdrawn, info.document), force=arguments.force)
    context.emit(
        {"digest": agreed.digest.hex(), "file": str(arguments.out)},
        f"{arguments.out}\nprove it with: comity agreement verify {arguments.out} --bundle BUNDLE",
    )


def _render(agreed: Agreed, withdrawn: Sequence[Withdrawn], document: bytes) -> bytes:
    """Return the file for auditors: what it says in words, and the bytes that were signed."""
    agreement = Agreement.FromString(AgreementDocument.FromString(document).agreement)
    value = {
        "format": _FORMAT,
        "digest": agreed.digest.hex(),
        "terms": words.terms_json(agreed.terms),
        "signatures": words.signatures(agreement),
        "withdrawals": words.withdrawals(withdrawn),
        "document": base64.b64encode(document).decode("ascii"),
    }
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _trust(context: Context, arguments: argparse.Namespace) -> TrustStore:
    path = arguments.bundle or context.config().bundle
    # Whoever names the bundle vouches for it; a node has checked that its own CA is in the one in its home.
    return TrustStore(load_bundle(path, now_ms=context.now_ms, own_ca=None))


def _verify(context: Context, arguments: argparse.Namespace) -> None:
    trust = _trust(context, arguments)
    answers, lines = [], []
    for path in arguments.files:
        agreed, withdrawn, signed = _verified(path, trust)
        ended = words.withdrawals(withdrawn)
        answers.append(
            {
                "file": str(path),
                "valid": True,
                "digest": agreed.digest.hex(),
                "terms": words.terms_json(agreed.terms),
                "signatures": signed,
                "withdrawals": ended,
            }
        )
        head = f"{path}: proven\n{fields({'agreement': agreed.digest.hex()})}"
        lines.append("\n\n".join([head, words.terms_text(agreed.terms), words.signed_text(signed, ended)]))
    context.emit(answers, "\n\n".join(lines))


def _verified(path: Path, trust: TrustStore) -> tuple[Agreed, tuple[Withdrawn, ...], list[dict[str, str]]]:
    """Verify an exported file: the signatures, and that the words in it are those that were signed.

    Raises:
        ConfigError: it is no export of this version, or says in words something else than what was signed.
        AgreementError: what was signed does not verify.
    """
    data = read_bytes(path, "the agreement", limit=_MAX_FILE)
    value = as_json(data, f"{path}: the agreement")
    if not isinstance(value, dict) or value.get("format") != _FORMAT or not isinstance(value.get("document"), str):
        raise ConfigError(f"no file of `comity agreement export` ({_FORMAT})", file=str(path))
    try:
        document = base64.b64decode(value["document"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ConfigError("its document is not base64", file=str(path)) from error
    try:
        agreed, withdrawn = open_document_of_agreement(document, trust)
    except AgreementError as error:
        raise AgreementError(f"{path}: {error}") from error
    if _render(agreed, withdrawn, document) != data:
        raise ConfigError("what it says in words is not what was signed: it was changed", file=str(path))
    return agreed, withdrawn, words.signatures(Agreement.FromString(AgreementDocument.FromString(document).agreement))


_NAME: Argument = argument(
    "agreement", metavar="AGREEMENT", help="its digest, or the beginning of it (6 digits at least), or its id"
)
_BUNDLE: Argument = argument("--bundle", type=Path, metavar="FILE", help="the consortium's trust bundle (this node's)")

COMMAND = Command(
    "agreement",
    "see, end, amend and prove what was agreed",
    description=(
        "An agreement is what all participants of a workflow have signed, byte for byte: nothing passes between "
        "organizations without one. Any participant can withdraw from it; to change it, all of them sign new terms."
    ),
    commands=(
        Command("list", "list the agreements of this node, whatever has become of them", _list, CONTROL),
        Command("show", "show an agreement in words, who signed it, and who withdrew", _show, (_NAME, *CONTROL)),
        Command(
            "withdraw",
            "withdraw from an agreement, for good",
            _withdraw,
            (
                _NAME,
                argument("--reason", default="", metavar="TEXT", help="what the others are told (one line)"),
                *CONTROL,
            ),
            description=(
                "Sign a statement that this organization withdraws. From then on nothing passes under the agreement "
                "here, and nowhere once the others have heard of it. What was certified before stays good."
            ),
        ),
        Command(
            "amend",
            "negotiate new terms in place of an agreement's",
            _amend,
            (
                _NAME,
                argument(
                    "changes",
                    type=Path,
                    metavar="CHANGES",
                    help="what is to change, in YAML or JSON, with the keys of a workflow: min_score: 600",
                ),
                *CONTROL,
            ),
            description=(
                "Propose terms that differ from the agreement's in what CHANGES says. If all participants sign them, "
                "the old agreement ends where the new one begins; until then it stays in force."
            ),
        ),
        Command(
            "export",
            "write an agreement with all signatures to a file, for auditors",
            _export,
            (
                _NAME,
                argument("--out", type=Path, required=True, metavar="FILE", help="the file to write"),
                argument("--force", action="store_true", help="replace the file"),
                _BUNDLE,
                *CONTROL,
            ),
        ),
        Command(
            "verify",
            "prove offline what was agreed, by whom, and who withdrew",
            _verify,
            (argument("files", nargs="+", type=Path, metavar="FILE", help="files of `agreement export`"), _BUNDLE),
            description=(
                "Check every signature of an exported agreement against a trust bundle, with no node running. Exit "
                "code 1 if anything was changed."
            ),
        ),
    ),
)
