"""What a node's own people see of its agreements, and do about them."""

from __future__ import annotations

import sqlite3
from typing import Final

from comity.agreement import parse_terms
from comity.errors import AgreementError, NotFound
from comity.v1 import control_pb2 as pb
from comity.v1.agreement_pb2 import Agreement, AgreementDocument, SignedWithdrawal
from comity_node.runtime.withdrawals import Withdrawals
from comity_node.runtime.workflows import Workflows
from comity_node.storage import journal, negotiations
from comity_node.storage.database import Database

#: Hexadecimal digits of a digest that name an agreement at least, and agreements that a list has at most.
_LEAST_DIGITS: Final = 6
_MOST_SHOWN: Final = 1_000


class AgreementControl:
    """The control API's calls about agreements."""

    def __init__(self, database: Database, workflows: Workflows, withdrawals: Withdrawals) -> None:
        """Answer from `database`; amend through `workflows`, withdraw through `withdrawals`."""
        self._database = database
        self._workflows = workflows
        self._withdrawals = withdrawals

    async def list(self) -> pb.ListAgreementsResponse:
        """Return the agreements, the newest first, after terms that are signed and not known to be concluded."""
        return pb.ListAgreementsResponse(agreements=await self._database.read(_all))

    async def get(self, name: str) -> pb.GetAgreementResponse:
        """Return one agreement, with its document if it is concluded.

        Raises:
            NotFound: none, or more than one, is called so.
        """
        return await self._database.read(lambda c: _one(c, name))

    async def withdraw(self, name: str, reason: str) -> pb.WithdrawAgreementResponse:
        """Withdraw from an agreement.

        Raises:
            NotFound: none, or more than one, is called so.
            AgreementError: it is over, or the reason is no short line.
        """
        digest = (await self.get(name)).info.digest
        await self._withdrawals.withdraw(bytes.fromhex(digest), reason)
        return pb.WithdrawAgreementResponse(digest=digest)

    async def amend(self, name: str, changes: bytes) -> pb.AmendAgreementResponse:
        """Begin to negotiate an amendment.

        Raises:
            NotFound: none, or more than one, is called so.
            AgreementError: it is not in force, or another amendment is under way.
            ConfigError: the changes are wrong.
        """
        digest = (await self.get(name)).info.digest
        return pb.AmendAgreementResponse(workflow_id=await self._workflows.amend(bytes.fromhex(digest), changes))


def _all(connection: sqlite3.Connection) -> list[pb.AgreementInfo]:
    signed = [_promised(row) for row in negotiations.open_promises(connection, limit=_MOST_SHOWN)]
    return [*signed, *(_concluded(connection, row) for row in journal.list_agreements(connection, limit=_MOST_SHOWN))]


def _one(connection: sqlite3.Connection, name: str) -> pb.GetAgreementResponse:
    matching = [info for info in _all(connection) if _is_called(info, name.lower())]
    if len(matching) != 1:
        problem = "more than one agreement" if matching else "no agreement"
        raise NotFound(f"there is {problem} {name[:64]!r}; `comity agreement list` names them ({_LEAST_DIGITS} digits)")
    info = matching[0]
    row = journal.get_agreement(connection, bytes.fromhex(info.digest))
    if row is None:
        return pb.GetAgreementResponse(info=info)
    statements = negotiations.withdrawals_from(connection, row.digest)
    document = AgreementDocument(
        agreement=row.agreement, withdrawals=[SignedWithdrawal.FromString(one.statement) for one in statements]
    )
    return pb.GetAgreementResponse(info=info, document=document.SerializeToString())


def _is_called(info: pb.AgreementInfo, name: str) -> bool:
    if len(name) >= _LEAST_DIGITS and info.digest.startswith(name):
        return True
    try:
        return parse_terms(info.terms).terms.id == name
    except AgreementError:  # of another version of this software: its digest still names it
        return False


def _promised(row: negotiations.PromiseRow) -> pb.AgreementInfo:
    state = "signed" if row.stage == "signed" else "given up"
    return pb.AgreementInfo(digest=row.digest.hex(), state=state, terms=row.terms, at_ms=row.signed_ms)


def _concluded(connection: sqlite3.Connection, row: journal.AgreementRow) -> pb.AgreementInfo:
    ends = [
        pb.AgreementEnd(organization=one.organization, reason=one.reason, at_ms=one.at_ms)
        for one in negotiations.withdrawals_from(connection, row.digest)
    ]
    return pb.AgreementInfo(
        digest=row.digest.hex(),
        state=row.state,
        terms=Agreement.FromString(row.agreement).terms,
        at_ms=row.created_ms,
        withdrawals=ends,
    )
