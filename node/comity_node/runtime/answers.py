"""What a validator is asked, and what it may answer: reviews that can be signed and sent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from comity.agreement import Agreed
from comity.certificate import MAX_SCORE
from comity.errors import AgentFailed
from comity.v1.task_pb2 import TaskOffer
from comity_node.runtime.seams import Workers, call_for
from comity_node.tracing import Subject

_DEADLINE_S = 30.0
_MAX_FEEDBACK = 16
_MAX_FEEDBACK_TEXT = 1024
#: Bytes; with these a signed review stays within comity.certificate.MAX_REVIEW.
_MAX_VALIDATOR = 8 * 1024
_MAX_AXES = 64
_MAX_AXIS = 128


async def ask_validator(workers: Workers, agreed: Agreed, home: str, offer: TaskOffer) -> dict[str, Any]:
    """Have the own validator judge the records that `home` has offered; returns its answer, checked.

    Raises:
        AgentError: there is none, it failed, or its answer cannot be signed.
        Busy: it has no room.
    """
    work = {
        "author": home,
        "dataset": agreed.terms.dataset,
        "purpose": agreed.terms.purpose,
        "min_score": agreed.terms.review.min_score,
        "records": [json.loads(task.record) for task in offer.tasks],
        # So that a validator which remembers rows knows the ones that come again (a repair, a repeated offer).
        "tasks": [task.id.hex() for task in offer.tasks],
    }
    subjects = [Subject(task.id, agreed.digest) for task in offer.tasks]
    answer = await call_for(workers, subjects, "review", work, deadline_s=_DEADLINE_S)
    return check_answer(answer, len(offer.tasks))


def check_answer(answer: object, count: int) -> dict[str, Any]:
    """Check what a validator returned, and return it with all optional parts filled in.

    Raises:
        AgentFailed: it is not {"reviews": [{"score", "axes", "feedback"}, ...], "validator": str} of `count` reviews.
    """
    if not isinstance(answer, dict) or not _is_text(answer.get("validator"), _MAX_VALIDATOR):
        raise AgentFailed('the validator has to return {"reviews": [...], "validator": "..."}')
    reviews = answer.get("reviews")
    if not isinstance(reviews, list) or len(reviews) != count:
        raise AgentFailed(f"the validator has to return {count} reviews")
    for one in reviews:
        if not isinstance(one, dict) or not _is_score(one.get("score")):
            raise AgentFailed(f"a review needs a score: a whole number from 0 to {MAX_SCORE}")
        axes, feedback = one.get("axes", {}), one.get("feedback", [])
        if not _is_axes(axes):
            raise AgentFailed(f"the axes of a review are at most {_MAX_AXES} whole numbers from 0 to {MAX_SCORE}")
        if not _is_feedback(feedback):
            raise AgentFailed(f"the feedback of a review is at most {_MAX_FEEDBACK} short texts")
        one["axes"], one["feedback"] = axes, feedback
    return answer


def _is_score(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_SCORE


def _is_axes(value: object) -> bool:
    if not isinstance(value, dict) or len(value) > _MAX_AXES:
        return False
    return all(_is_text(name, _MAX_AXIS) and _is_score(score) for name, score in value.items())


def _is_text(value: object, longest: int) -> bool:
    """Tell whether a value is text of at most `longest` bytes; JSON may hold half characters, which are none."""
    try:
        return isinstance(value, str) and len(value.encode()) <= longest
    except UnicodeEncodeError:
        return False


def _is_feedback(value: object) -> bool:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) > _MAX_FEEDBACK:
        return False
    return all(_is_text(text, _MAX_FEEDBACK_TEXT) for text in value)
