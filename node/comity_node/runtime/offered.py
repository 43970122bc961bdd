"""What a home may offer to be reviewed under an agreement, and how much of it."""

from __future__ import annotations

from comity import draw
from comity.agreement import Agreed
from comity.errors import AgreementError, CertificateInvalid, UnexpectedMessage
from comity.v1.task_pb2 import Task, TaskOffer


def check_offer(me: str, home: str, agreed: Agreed, offer: TaskOffer) -> int:
    """Refuse what was not agreed to be offered; returns the revision of the tasks.

    Args:
        me: the organization that is to review.
        home: whose offer it is.
        agreed: the agreement that the first task names.
        offer: of at least one task.

    Raises:
        AgreementError, UnexpectedMessage: it was not, or makes no sense.
    """
    first: Task = offer.tasks[0]
    if len(offer.tasks) > agreed.terms.batch_records:
        raise AgreementError(f"{len(offer.tasks)} records in one batch; {agreed.terms.batch_records} were agreed")
    if first.revision > agreed.terms.repair_rounds:
        raise AgreementError(f"repair {first.revision}; {agreed.terms.repair_rounds} were agreed")
    if any(task.revision != first.revision for task in offer.tasks):
        raise UnexpectedMessage("the tasks of an offer are of one revision")
    if len({task.id for task in offer.tasks}) != len(offer.tasks):
        raise UnexpectedMessage("a task is twice in an offer")
    _check_panel(me, home, agreed, offer)
    return first.revision


def _check_panel(me: str, home: str, agreed: Agreed, offer: TaskOffer) -> None:
    """Refuse tasks whose panel this organization is not in, or whose home has chosen their ids.

    Raises:
        AgreementError: they are such tasks.
    """
    if not agreed.terms.review.panel:
        return
    try:
        panel = agreed.numbered_panel(home, offer.number)
    except CertificateInvalid as error:
        raise AgreementError(str(error)) from error
    batch = draw.batch_id(agreed.digest, home, offer.number)
    known = {draw.task_id(batch, ordinal) for ordinal in range(agreed.terms.batch_records)}
    if offer.batch_id != batch or not known.issuperset(task.id for task in offer.tasks):
        raise AgreementError(f"the offer is not batch {offer.number} of {home}, or has tasks that are not of it")
    if me not in panel:
        raise AgreementError(f"{me} was not drawn for batch {offer.number} of {home}: {', '.join(sorted(panel))}")


def quota(agreed: Agreed, home: str) -> str:
    """Return the name under which a home's tasks under an agreement are counted."""
    return f"agreement/{agreed.digest.hex()}/{home}"


def check_quota(agreed: Agreed, home: str, tasks: int) -> None:
    """Refuse more tasks of a home than were agreed.

    Raises:
        AgreementError: they are more.
    """
    if tasks > (most := agreed.terms.records_per_organization):
        raise AgreementError(f"{home} has offered {most} records, as many as were agreed, or would with these")
