"""The checker: nothing is lost, nothing is done twice, and what was done had been decided before.

Reads the journals of all organizations when a plan is over. Each check yields what is wrong, in words; if none yields
anything, all is well. All organizations are honest here: whatever is wrong, the product has done it.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comity.agreement import Agreed, open_agreement
from comity.digest import sha256
from comity.errors import ComityError
from comity.provenance import verify_provenance
from comity.v1.task_pb2 import RecordDelivery, ReviewDelivery, TaskOffer
from comity_node.admission.token_hops import verify_journey
from comity_node.storage import audit
from comity_node.storage.inbox import offer_digest
from comity_node.storage.reliability import MAX_WEIGHT
from kit.chaos_journals import Journal, Task, read
from kit.chaos_member import BASE_MS
from kit.chaos_net import Left
from kit.chaos_plan import ALL, OF_MESSAGES, Kind
from kit.chaos_world import Played

FINAL = frozenset({"certified", "rejected", "undecided", "refused"})
_DECIDED = frozenset(f"task.{state}" for state in FINAL)
#: What happens between two organizations, and so to both.
_BETWEEN = OF_MESSAGES | {Kind.PARTITION}
#: Outcomes count half after 30 days (docs/reliability.md); of the time that a world takes, no more than this is lost.
_FADED = 0.002
#: What a decision may take beside its leases.
_MARGIN_MS = 20_000


@dataclass(frozen=True, slots=True)
class Evidence:
    """All journals, what went over the wire, and what was agreed."""

    played: Played
    journals: Mapping[str, Journal]
    agreed: Mapping[bytes, Agreed]


Check = Callable[[Evidence], Iterator[str]]


def check(played: Played) -> list[str]:
    """Return all that is wrong after a plan was played; nothing if all is well."""
    wrong = [f"not at its end after all faults were mended: {line}" for line in played.open]
    try:
        journals = {name: read(name, played.file(name), played.trust) for name in played.names}
        raws = {digest: raw for journal in journals.values() for digest, raw in journal.agreements.items()}
        agreed = {digest: open_agreement(raw, played.trust) for digest, raw in raws.items()}
    except ComityError as error:
        return [*wrong, f"a journal is not as it should be: {error}"]
    evidence = Evidence(played, journals, agreed)
    return wrong + [line for each in CHECKS for line in each(evidence)]


def every_task_is_accounted_for(evidence: Evidence) -> Iterator[str]:
    """Each participant has as many tasks as were agreed, each at its end; none is undecided without a reason."""
    for digest, agreed in evidence.agreed.items():
        for name in sorted(agreed.homes):
            journal = evidence.journals[name]
            own = [task for task in journal.tasks.values() if task.agreement == digest]
            made = agreed.terms.records_per_organization
            if agreed.terms.flow:
                made = sum(one.ending == "done" for one in journal.journeys if one.agreement == digest)
            if len(own) != made:
                yield f"{name} has {len(own)} tasks of {made} that were to be reviewed"
            for task in own:
                if task.state not in FINAL:
                    yield f"{name}: task {task.id.hex()} ended nowhere: it is {task.state}"
                elif task.state in ("undecided", "refused") and not _has_reason(journal, task):
                    yield f"{name}: task {task.id.hex()} is {task.state}, and nobody was late"
    for workflow in evidence.played.submitted:
        if workflow not in evidence.journals[evidence.played.names[0]].workflows:
            yield f"workflow {workflow} was taken and is lost"


def every_journey_ends_once(evidence: Evidence) -> Iterator[str]:
    """Each home has as many tasks on their way as were agreed; each ended, and one that came home is one record.

    Its way verifies offline, from hop to hop.
    """
    for name, journal in evidence.journals.items():
        for digest, agreed in evidence.agreed.items():
            own = [one for one in journal.journeys if one.agreement == digest]
            if agreed.terms.flow and name in agreed.homes and len(own) != agreed.terms.records_per_organization:
                yield f"{name} has sent {len(own)} tasks of {agreed.terms.records_per_organization} on their way"
        records = Counter(one.record for one in journal.journeys if one.ending == "done")
        if any(count > 1 for count in records.values()) or not records.keys() <= journal.tasks.keys():
            yield f"{name}: what came home is not one record each"
        for one in journal.journeys:
            if one.ending not in ("done", "expired"):
                yield f"{name}: journey {one.id.hex()} is {one.ending or 'open'}: {one.reason}"
            try:
                verify_journey(one.way, evidence.played.chains, evidence.played.trust, name, BASE_MS)
            except ComityError as error:
                yield f"{name}: the way of {one.id.hex()} does not verify: {error}"


def _has_reason(journal: Journal, task: Task) -> bool:
    """Whether somebody who was asked about a task did not answer in time."""
    for (batch, revision, organization), (state, until_ms, _) in journal.assignments.items():
        if (batch, revision) == (task.batch, task.revision):
            votes = [one for one in journal.votes if (one.task, one.organization) == (task.id, organization)]
            if state == "expired" or any(one.received_ms > until_ms for one in votes if one.revision == revision):
                return True
    return False


def every_record_is_where_it_belongs(evidence: Evidence) -> Iterator[str]:
    """A certified record is with everybody who takes part; nobody has one that its home did not certify, or a bad one.

    Its certificate and provenance verify offline.
    """
    for digest, agreed in evidence.agreed.items():
        for home in sorted(agreed.homes):
            for task in evidence.journals[home].tasks.values():
                if task.agreement == digest and task.state == "certified":
                    yield from _delivered(evidence, agreed, home, task)
    for name, journal in evidence.journals.items():
        for (author, task_id), stored in journal.records.items():
            own = evidence.journals[author].tasks.get(task_id)
            if own is None or (own.state, own.digest) != ("certified", stored.digest):
                yield f"{name} has a record of {author} that {author} has not certified"
            if json.loads(stored.record).get("x", 0) < 0:
                yield f"{name} has a bad record of {author}"
            try:
                proof = verify_provenance(stored.provenance, evidence.played.trust)
            except ComityError as error:
                yield f"{name}: the provenance of {task_id.hex()} of {author} does not verify: {error}"
            else:
                if (sha256(proof.record), proof.author, proof.holder) != (stored.digest, author, name):
                    yield f"{name}: the provenance of {task_id.hex()} is of something else"


def _delivered(evidence: Evidence, agreed: Agreed, home: str, task: Task) -> Iterator[str]:
    for name in sorted(agreed.participants):
        stored = evidence.journals[name].records.get((home, task.id))
        if stored is None:
            waits = any(
                one.kind == "records" and one.organization == name and one.state in ("pending", "sent")
                for one in evidence.journals[home].outbox
            )
            if not waits:
                yield f"{name} has not got record {task.id.hex()} of {home}, and it is not on its way"
        elif stored.digest != task.digest:
            yield f"{name} has another record {task.id.hex()} of {home}"


def no_custody_is_lost(evidence: Evidence) -> Iterator[str]:
    """What was acknowledged is in the journal of who acknowledged it; a batch was judged or given back, and said so."""
    for one in evidence.played.left:
        if one.acknowledged:
            yield from _kept(evidence, one)
    for name, journal in evidence.journals.items():
        given_back = {entry["subject"] for entry in journal.audit if entry.get("action") == "offer.given-back"}
        for custody in journal.custody.values():
            if custody.state == "held":
                yield f"{name} holds a batch of {custody.home} for ever"
            elif not custody.reviews and custody.digest.hex() not in given_back:
                yield f"{name} neither judged a batch of {custody.home} nor gave it back"


def _kept(evidence: Evidence, one: Left) -> Iterator[str]:
    receiver = evidence.journals[one.receiver]
    told = f"{one.receiver} told {one.sender} that it has"
    if one.kind == "agreement" and not any(raw == one.body for raw in receiver.agreements.values()):
        yield f"{told} an agreement, and it has not"
    elif one.kind == "task-offer":
        offer = TaskOffer.FromString(one.body)
        if offer_digest(one.sender, offer.batch_id, offer.tasks[0].revision) not in receiver.custody:
            yield f"{told} batch {offer.batch_id.hex()}, and it has not"
    elif one.kind == "records":
        for record in RecordDelivery.FromString(one.body).records:
            if (one.sender, record.task.id) not in receiver.records:
                yield f"{told} record {record.task.id.hex()}, and it has not"
    elif one.kind == "reviews":
        kept = {vote.review for vote in receiver.votes}
        bodies = [review.review for review in ReviewDelivery.FromString(one.body).reviews]
        if not any(body in kept for body in bodies) and not _too_late(evidence, receiver, one):
            yield f"{told} its votes, and it has not"


def _too_late(evidence: Evidence, home: Journal, one: Left) -> bool:
    """Whether all tasks of a delivery of votes have gone on to another revision: then they count no more."""
    for custody in evidence.journals[one.sender].custody.values():
        for checked in custody.reviews:
            if custody.home == home.name and checked.envelope in one.body:
                task = home.tasks.get(checked.review.task_id)
                return task is not None and task.revision > checked.review.revision
    return False


def every_vote_counts_once(evidence: Evidence) -> Iterator[str]:
    """Votes are those that their organizations have signed, once, for the batch that they hold; all have arrived."""
    signed: defaultdict[tuple[str, str, bytes, int], set[bytes]] = defaultdict(set)
    for name, journal in evidence.journals.items():
        if journal.equivocations:
            yield f"{name} holds {journal.equivocations} pairs of contradicting votes of honest organizations"
        for custody in journal.custody.values():
            for one in custody.reviews:
                signed[name, custody.home, one.review.task_id, custody.revision].add(one.envelope)
    for key, envelopes in signed.items():
        if len(envelopes) > 1:
            yield f"{key[0]} signed {len(envelopes)} reviews of one task of {key[1]}"
    for home, journal in evidence.journals.items():
        kept = {(vote.organization, home, vote.task, vote.revision): vote.review for vote in journal.votes}
        for key, review in kept.items():
            if review not in signed.get(key, ()):
                yield f"{home} has a vote of {key[0]} that {key[0]} does not know of"
        for (name, of, task_id, revision), _ in signed.items():
            task = journal.tasks.get(task_id)
            if of == home and (name, of, task_id, revision) not in kept and task and task.revision == revision:
                yield f"{home} has not got the vote of {name} on {task_id.hex()}"


def counters_say_what_the_votes_say(evidence: Evidence) -> Iterator[str]:
    """Reliability and quotas are sums over what happened, each counted once.

    A vote that came after the certificate, which does not have it, may teach something or nothing.
    """
    for name, journal in evidence.journals.items():
        least: defaultdict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
        most: defaultdict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
        for vote in journal.votes:
            task = journal.tasks[vote.task]
            if task.state in ("certified", "rejected") and task.revision == vote.revision:
                against = bool(vote.accept) != (task.state == "certified")
                most[vote.organization, "reviewer"][against] += 1
                least[vote.organization, "reviewer"][against] += vote.review in journal.certifying
        for custody in journal.custody.values():
            for one in custody.reviews:
                for bound in (least, most):
                    bound[custody.home, "generator"][not one.review.accept] += 1
        for key in sorted(most.keys() | journal.reliability.keys()):
            counted = journal.reliability.get(key, (0.0, 0.0))
            gone = max(0.0, sum(most[key]) - MAX_WEIGHT)  # what is older gave way
            bounds = zip(least[key], counted, most[key], strict=True)
            if sum(counted) > MAX_WEIGHT + 1e-6 or not all(
                (low - gone) * (1 - _FADED) <= count <= high for low, count, high in bounds
            ):
                yield f"{name}: {key[0]} as {key[1]} is counted {counted}, its votes and rows say {most[key]}"
        for of, taken in journal.taken.items():
            if journal.counted.get(of) != len(taken):
                yield f"{name}: {journal.counted.get(of)} tasks of {of[1]} are counted, {len(taken)} came"


def others_take_over(evidence: Evidence) -> Iterator[str]:
    """R3: at a home to which nothing has happened itself, no batch waits longer than for its leases."""
    struck = {fault.who for fault in evidence.played.plan.faults} | {
        fault.other for fault in evidence.played.plan.faults if fault.kind is not Kind.KILL
    }
    if ALL in struck & {fault.other for fault in evidence.played.plan.faults if fault.kind in _BETWEEN}:
        return
    for number, name in enumerate(evidence.played.names):
        journal = evidence.journals[name]
        decided = {
            entry["detail"]["task"]: entry["at_ms"]
            for entry in journal.audit
            if entry.get("kind") == "effect" and entry.get("action") in _DECIDED
        }
        for task in journal.tasks.values() if number not in struck else ():
            terms = evidence.agreed[task.agreement].terms
            asked = [
                at
                for (batch, revision, _), (_, _, at) in journal.assignments.items()
                if (batch, revision) == (task.batch, task.revision)
            ]
            took_ms = decided.get(task.id.hex(), 0) - min(asked, default=0)
            if asked and took_ms > terms.review.eligible * terms.lease_seconds * 1000 + _MARGIN_MS:
                yield f"{name}: task {task.id.hex()} took {took_ms} ms; a lease is {terms.lease_seconds} s"


def every_effect_is_in_the_log_once(evidence: Evidence) -> Iterator[str]:
    """The log verifies, and tells of each end of a task and each stored record exactly once."""
    for name, journal in evidence.journals.items():
        try:
            audit.verify_file(evidence.played.file(name), None)
        except ComityError as error:
            yield f"{name}: the audit log does not verify: {error}"
        ends = Counter(
            (entry["detail"]["task"], entry["detail"].get("revision", 0), entry["action"].removeprefix("task."))
            for entry in journal.audit
            if entry.get("kind") == "effect" and entry.get("action", "").startswith("task.")
        )
        for task in journal.tasks.values():
            said = {key[1:]: count for key, count in ends.items() if key[0] == task.id.hex()}
            expected = {(revision, "in_repair"): 1 for revision in range(task.revision)}
            expected[task.revision, task.state] = 1
            if task.state in FINAL and said != expected and not _ended_in_repair(task, said):
                yield f"{name}: the log says of task {task.id.hex()} {said}, its journal {expected}"
        stored = Counter(
            (entry["peer"], entry["subject"]) for entry in journal.audit if entry.get("action") == "record.stored"
        )
        have = Counter((one.author, one.digest.hex()) for one in journal.records.values() if one.author != name)
        if stored != have:
            yield f"{name}: the log tells of {stored.total()} stored records, {have.total()} are there"
        concluded = Counter(entry["subject"] for entry in journal.audit if entry.get("action") == "agreement.concluded")
        if any(count > 1 for count in concluded.values()):
            yield f"{name}: the log tells of an agreement that was concluded twice"


def _ended_in_repair(task: Task, said: Mapping[tuple[int, str], int]) -> bool:
    """Whether a task ended while it was in repair: its own agent could not mend it."""
    expected = {(revision, "in_repair"): 1 for revision in range(task.revision + 1)}
    return task.state in ("rejected", "undecided") and said == {**expected, (task.revision, task.state): 1}


def nothing_left_undecided(evidence: Evidence) -> Iterator[str]:
    """S8, S1: what left had been allowed, in the log, on disk, before it left."""
    actions = {"task-offer": "record.send", "records": "record.release", "reviews": "review.send"}
    index: dict[str, dict[tuple[str, str, str], int]] = {}
    for name, journal in evidence.journals.items():
        places = index[name] = {}
        for place, entry in enumerate(journal.audit):
            if entry.get("decision") == "allow":
                places.setdefault((entry["action"], entry.get("peer", ""), entry.get("subject", "")), place)
    for one in evidence.played.left:
        if one.kind in actions:
            for subject in _subjects(one):
                at = index[one.sender].get((actions[one.kind], one.receiver, subject))
                if at is None or at >= one.audited:
                    yield f"a {one.kind} of {one.sender} to {one.receiver} left before that was decided"


def _subjects(one: Left) -> Sequence[str]:
    """What the decisions are about without which a message may not leave."""
    if one.kind == "task-offer":
        return [sha256(task.record).hex() for task in TaskOffer.FromString(one.body).tasks]
    if one.kind == "records":
        return [sha256(record.task.record).hex() for record in RecordDelivery.FromString(one.body).records]
    delivery = ReviewDelivery.FromString(one.body)
    return [offer_digest(one.receiver, delivery.batch_id, one.revision).hex()]


def nothing_was_given_up(evidence: Evidence) -> Iterator[str]:
    """No message failed but offers that came too late, and no workflow is under way."""
    for name, journal in evidence.journals.items():
        for message in journal.outbox:
            if message.state == "failed" and message.kind != "task-offer":
                yield f"{name} gave up a {message.kind} to {message.organization}: {message.reason}"
        for workflow, (state, agreement) in journal.workflows.items():
            if agreement is not None and state != "done":
                yield f"{name}: workflow {workflow} is {state}"
    for digest, agreed in evidence.agreed.items():
        for name in sorted(agreed.participants):
            if digest not in evidence.journals[name].agreements:
                yield f"{name} has not got agreement {digest.hex()[:12]} that it signed"


CHECKS: tuple[Check, ...] = (
    every_task_is_accounted_for,
    every_journey_ends_once,
    every_record_is_where_it_belongs,
    no_custody_is_lost,
    every_vote_counts_once,
    counters_say_what_the_votes_say,
    others_take_over,
    every_effect_is_in_the_log_once,
    nothing_left_undecided,
    nothing_was_given_up,
)


def facts(played: Played) -> dict[str, Any]:
    """Return figures of a plan that was played: tasks by state, and records, of all organizations."""
    journals = [read(name, played.file(name), played.trust) for name in played.names]
    states = Counter(task.state for journal in journals for task in journal.tasks.values())
    return {"tasks": dict(sorted(states.items())), "records": sum(len(journal.records) for journal in journals)}
