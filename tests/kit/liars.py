"""An election among real keys in memory: honest reviewers, liars with a strategy, a home that may collude.

Everything goes through what a node goes through: signed reviews, the home's checks (`check_review`, who may vote, what
about, score and vote), `journal.add_vote` in a real database, `Ballot`, the certificate and its offline verification,
`learn`, and evidence. Nothing of it is simulated but time and the wire.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from comity import draw
from comity.agreement import Agreed, conclude, open_agreement, sign_terms
from comity.certificate import CheckedReview, QuorumRule, build_certificate, check_review, verify_certificate
from comity.digest import canonical_json, sha256
from comity.errors import ComityError
from comity.evidence import make_evidence, verify_evidence
from comity.v1.agreement_pb2 import ReviewTerms
from comity.v1.task_pb2 import Certificate
from comity_node.protocol.quorum import Ballot, Outcome
from comity_node.runtime.certify import learn
from comity_node.storage import evidence, journal
from comity_node.storage.schema import prepare
from kit.consortium import NOW_MS, Consortium, consortium, names
from kit.documents import MIN_SCORE, make_review, make_terms, sign_review

DAY_MS = 86_400_000
#: A vote on the wire: who delivers it, the envelope, the chain.
Wire = tuple[str, bytes, tuple[bytes, ...]]


@dataclass(frozen=True)
class Record:
    """One record under review, as those who judge it see it."""

    number: int
    task_id: bytes
    batch: bytes
    data: bytes
    good: bool
    #: Honest reviewers do not all see it the same way.
    contested: bool


@dataclass
class Election:
    """What a strategy may use: the world, this record, and what has been sent about it so far."""

    world: World
    record: Record
    random: Random
    #: Signed votes that the home has shown to its friends: those of before this liar's turn.
    seen: list[Wire] = field(default_factory=list)

    def vote(self, name: str, score: int, *, key: str = "", **changes: Any) -> Wire:
        """A vote of `name` about this record; signed by another one's node if `key` says so."""
        record, agreed = self.record, self.world.agreed
        values: dict[str, Any] = {
            "task_id": record.task_id, "record_digest": sha256(record.data), "author": self.world.author,
        }  # fmt: skip
        review = make_review(agreed, name, score, **{**values, **changes})
        node = self.world.lab.nodes[key or name]
        return (name, sign_review(node, review), tuple(node.chain))


Strategy = Callable[[Election, str], Sequence[Wire]]


def _accept_all(at: Election, me: str) -> Sequence[Wire]:
    return [at.vote(me, 9500)]


def _reject_all(at: Election, me: str) -> Sequence[Wire]:
    return [at.vote(me, 10)]


def _random(at: Election, me: str) -> Sequence[Wire]:
    return [at.vote(me, at.random.randint(0, 10_000))]


def _invert(at: Election, me: str) -> Sequence[Wire]:
    return [at.vote(me, 10 if at.record.good else 9500)]


def _equivocate(at: Election, me: str) -> Sequence[Wire]:
    return [at.vote(me, 9500), at.vote(me, 10)]


def _twice(at: Election, me: str) -> Sequence[Wire]:
    wire = at.vote(me, 10 if at.record.good else 9500)
    return [wire] * 3


def _copy(at: Election, me: str) -> Sequence[Wire]:
    """Another one's vote, under the own name, under the other's, and as it is."""
    if not at.seen:
        return []
    other, envelope, chain = at.random.choice(at.seen)
    checked = check_review(envelope, chain, at.world.lab.trust)
    return [(me, envelope, chain), at.vote(other, checked.review.score, key=me), at.vote(me, checked.review.score)]


def _others_task(at: Election, me: str) -> Sequence[Wire]:
    return [at.vote(me, 9500, task_id=sha256(b"another")[:16])]


def _other_record(at: Election, me: str) -> Sequence[Wire]:
    return [at.vote(me, 9500, record_digest=sha256(b"another"))]


def _replay(at: Election, me: str) -> Sequence[Wire]:
    return [wire for wire in at.world.old if wire[0] == me][-3:]


def _other_epoch(at: Election, me: str) -> Sequence[Wire]:
    epoch = at.world.agreed.terms.bundle_epoch
    return [at.vote(me, 9500, bundle_epoch=epoch + 1), at.vote(me, 9500, bundle_epoch=max(epoch, 1) - 1)]


def _other_author(at: Election, me: str) -> Sequence[Wire]:
    return [at.vote(me, 9500, author=me)]


def _wrong_pair(at: Election, me: str) -> Sequence[Wire]:
    return [at.vote(me, 10, accept=True), at.vote(me, 9500, accept=False), at.vote(me, 20_000)]


def _stale_chain(at: Election, me: str) -> Sequence[Wire]:
    """Before its certificate was valid, long after, and with the chain of the same name elsewhere."""
    elsewhere = at.world.elsewhere.nodes[me]
    name, envelope, _ = at.vote(me, 9500)
    return [
        at.vote(me, 9500, at_ms=NOW_MS - 400 * DAY_MS),
        at.vote(me, 9500, at_ms=NOW_MS + 4000 * DAY_MS),
        (name, envelope, tuple(elsewhere.chain)),
        (name, sign_review(elsewhere, make_review(at.world.agreed, me, 9500)), tuple(elsewhere.chain)),
    ]


def _other_revision(at: Election, me: str) -> Sequence[Wire]:
    return [at.vote(me, 9500, revision=1)]


def _stuff(at: Election, me: str) -> Sequence[Wire]:
    """Votes in everybody's name, the author's too."""
    return [at.vote(name, 9500, key=me) for name in at.world.lab.names]


def _author_votes(at: Election, me: str) -> Sequence[Wire]:
    """The author's own vote, signed with its own key, as well as the friend's."""
    return [at.vote(at.world.author, 9500), at.vote(me, 9500)]


def _silent(at: Election, me: str) -> Sequence[Wire]:
    del at, me
    return []


def _contrary(at: Election, me: str) -> Sequence[Wire]:
    """Where honest reviewers differ, lend weight to the side that hurts more of them; else stay unsuspected."""
    good = at.record.good
    return [at.vote(me, (10 if good else 9500) if at.record.contested else (9500 if good else 10))]


#: Whatever the threat model lists; "late" is sent after the record is decided.
STRATEGIES: dict[str, Strategy] = {
    "accept all": _accept_all,
    "reject all": _reject_all,
    "random": _random,
    "invert": _invert,
    "equivocate": _equivocate,
    "vote twice": _twice,
    "copy": _copy,
    "another's task": _others_task,
    "another record": _other_record,
    "replay old votes": _replay,
    "another epoch": _other_epoch,
    "another author": _other_author,
    "wrong score and vote": _wrong_pair,
    "stale chain": _stale_chain,
    "another revision": _other_revision,
    "ballot stuffing": _stuff,
    "the author votes": _author_votes,
    "silent": _silent,
    "contrary where contested": _contrary,
    "late": _invert,
    "late and right": lambda at, me: [at.vote(me, 9500 if at.record.good else 10)],
}


@dataclass
class Tally:
    """What came of an election."""

    bad_certified: int = 0
    good_rejected: int = 0
    good_certified: int = 0
    bad_rejected: int = 0
    undecided: int = 0
    refused: int = 0
    both_sides: int = 0


class World:
    """n eligible reviewers, f of them liars; the author lies or not; a database for what its home keeps."""

    def __init__(self, eligible: int, *, seed: int, panel: int = 0, liars: int | None = None) -> None:
        self.random = Random(seed)
        self.lab: Consortium = consortium(*names(eligible + 1))
        self.elsewhere = consortium(*names(eligible + 1), name="elsewhere")
        self.author = names(1)[0]
        self.agreed = self._agree(panel)
        faulty = (eligible - 1) // 3 if liars is None else liars
        self.voters = self.lab.names[1:]
        self.liars = frozenset(self.random.sample(self.voters, faulty))
        self.honest = frozenset(self.voters) - self.liars
        self.old: list[Wire] = []
        self.tally = Tally()
        self.now_ms = NOW_MS + 5000
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        prepare(self.connection, "liars")
        self.connection.execute(
            "INSERT INTO agreements VALUES (?, x'', ?, 'p', 'd', ?, 'active', 0)",
            (self.agreed.digest, self.author, NOW_MS + DAY_MS),
        )

    def _agree(self, panel: int) -> Agreed:
        terms = make_terms(self.lab)
        if panel:
            rule = QuorumRule.of(panel)
            terms.review.CopyFrom(
                ReviewTerms(
                    eligible=panel, faulty=rule.faulty, quorum=rule.quorum, min_score=MIN_SCORE, panel=panel
                )
            )  # fmt: skip
            bound = {name: draw.own_commitment(self.lab.nodes[name].key, terms) for name in terms.participants}
            data = draw.bound(terms, bound)
        else:
            data = terms.SerializeToString()
        signatures = [sign_terms(self.lab.nodes[name], data) for name in self.lab.names]
        return open_agreement(conclude(data, signatures), self.lab.trust)

    def record(self, number: int, *, good: bool, contested: bool = False) -> Record:
        batch = draw.batch_id(self.agreed.digest, self.author, number % self.agreed.batches)
        task_id = sha256(b"task" + batch + number.to_bytes(4, "big"))[:16]
        data = canonical_json({"number": number, "good": good})
        return Record(number, task_id, batch, data, good, contested)

    # -- one record ------------------------------------------------------------------------------------------------

    def hold(self, record: Record, plan: dict[str, str], opinions: dict[str, int] | None = None) -> Outcome:
        """Put a record to the vote.

        Args:
            record: which.
            plan: strategy of each liar.
            opinions: scores of honest reviewers that differ from the usual ones (9000 for good, 500 for bad).
        """
        self._open(record)
        at = Election(self, record, self.random)
        panel = self.agreed.panel(self.author, record.batch)
        honest = [name for name in sorted(self.honest) if name in panel]
        liars = sorted(self.liars)  # those who were not drawn vote all the same
        self.random.shuffle(honest)
        for name in honest[: len(honest) // 2]:
            self._say(at, name, opinions)
        for name in liars:
            if not plan[name].startswith("late"):
                self._deliver(record, panel, STRATEGIES[plan[name]](at, name))
        for name in honest[len(honest) // 2 :]:
            self._say(at, name, opinions)
        outcome = self._conclude(record, panel)
        for name in liars:
            if plan[name].startswith("late"):
                self._deliver(record, panel, STRATEGIES[plan[name]](at, name))
        self._check_forgeries(at, liars, plan, panel, outcome)
        self.old += at.seen
        self.now_ms += 60_000
        return outcome

    def _say(self, at: Election, name: str, opinions: dict[str, int] | None) -> None:
        usual = 9000 if at.record.good else 500
        wire = at.vote(name, (opinions or {}).get(name, usual))
        at.seen.append(wire)
        self._deliver(at.record, self.agreed.panel(self.author, at.record.batch), [wire])

    def _open(self, record: Record) -> None:
        task = journal.TaskRow(
            task_id=record.task_id, agreement_digest=self.agreed.digest, workflow_id="w", batch_id=record.batch,
            ordinal=record.number, revision=0, state="in_review", record=record.data,
            record_digest=sha256(record.data), updated_ms=self.now_ms,
        )  # fmt: skip
        journal.put_tasks(self.connection, [task])

    def _deliver(self, record: Record, panel: frozenset[str], wires: Sequence[Wire]) -> None:
        """What a home does with votes that come in: check, keep one each, keep the proof of a second one."""
        for sender, envelope, chain in wires:
            try:
                checked = check_review(envelope, chain, self.lab.trust)
                self._check(record, panel, sender, checked)
            except ComityError:
                self.tally.refused += 1
                continue
            review = checked.review
            row = journal.VoteRow(
                record.task_id, 0, checked.organization, envelope, chain, review.accept, review.score, self.now_ms,
                journal.vote_subject(review.record_digest, review.agreement_digest, review.bundle_epoch),
            )  # fmt: skip
            if journal.add_vote(self.connection, row) is journal.Added.DIFFERENT:
                first = journal.get_vote(self.connection, record.task_id, 0, checked.organization)
                assert first is not None
                self.accuse(make_evidence(first.review, first.chain, envelope, chain))

    def accuse(self, raw: bytes) -> None:
        """Take what may be evidence, as a node does."""
        try:
            proven = verify_evidence(raw, self.lab.trust)
        except ComityError:
            return
        evidence.add_evidence(self.connection, proven, self.now_ms, 30 * DAY_MS)

    def _check(self, record: Record, panel: frozenset[str], sender: str, checked: CheckedReview) -> None:
        """The checks of `BallotBox`: the same ones, in its order."""
        self._ballot(record, panel).add(checked)
        if checked.organization != sender or checked.review.revision != 0:
            raise ComityError(f"{sender} delivered a review of {checked.organization}")

    def _ballot(self, record: Record, panel: frozenset[str]) -> Ballot:
        return Ballot(
            task_id=record.task_id, record_digest=sha256(record.data), agreement_digest=self.agreed.digest,
            epoch=self.agreed.terms.bundle_epoch, author=self.author, eligible=panel, rule=self.agreed.rule,
            min_score=MIN_SCORE,
        )  # fmt: skip

    def _conclude(self, record: Record, panel: frozenset[str]) -> Outcome:
        ballot = self._ballot(record, panel)
        votes = journal.batch_votes(self.connection, record.batch, 0).get(record.task_id, [])
        for vote in votes:
            ballot.add(check_review(vote.review, vote.chain, self.lab.trust))
        outcome, tally = ballot.outcome(), self.tally
        if outcome in (Outcome.ACCEPT, Outcome.REJECT):
            certificate, accept = ballot.certificate(), outcome is Outcome.ACCEPT
            self.verify(certificate, record, panel)
            learn(self.connection, [(vote.organization, vote.accept == accept) for vote in votes], self.now_ms)
            tally.good_certified += accept and record.good
            tally.bad_certified += accept and not record.good
            tally.good_rejected += record.good and not accept
            tally.bad_rejected += not record.good and not accept
        else:
            tally.undecided += 1
        return outcome

    def verify(self, certificate: Certificate, record: Record, panel: frozenset[str]) -> None:
        """Check a certificate, as anybody can offline."""
        verify_certificate(
            certificate, record=record.data, participants=panel, rule=self.agreed.rule, min_score=MIN_SCORE,
            trust=self.lab.trust,
        )  # fmt: skip

    def _check_forgeries(
        self, at: Election, liars: Sequence[str], plan: dict[str, str], panel: frozenset[str], outcome: Outcome
    ) -> None:
        """The author colludes: of all votes it has ever got, it makes the certificate it would like.

        One that q - f honest votes stand behind is none of its making, unless there is one to the contrary.
        """
        wanted = not at.record.good
        rule, contrary = self.agreed.rule, Outcome.REJECT if wanted else Outcome.ACCEPT
        says = [check_review(wire[1], wire[2], self.lab.trust).review.accept for wire in at.seen]
        honest = outcome is not contrary and says.count(wanted) >= rule.quorum - rule.faulty
        wires = [*at.seen, *self.old[-20:]]
        for name in liars:
            wires += STRATEGIES[plan[name]](at, name)
            wires += [at.vote(name, 9500 if wanted else 10)]
            wires += [at.vote(other, 9500 if wanted else 10, key=name) for other in self.honest]
        votes = list(self._parsed(wires))
        for chosen in (votes, [vote for vote in votes if vote.review.accept == wanted]):
            if not chosen:
                continue
            forged = build_certificate(chosen[: len(panel)], author=self.author, rule=rule, accept=wanted)
            forged.task_id, forged.record_digest = at.record.task_id, sha256(at.record.data)
            try:
                self.verify(forged, at.record, panel)
            except ComityError:
                self.tally.refused += 1
            else:
                self.tally.both_sides += not honest

    def _parsed(self, wires: Sequence[Wire]) -> Iterator[CheckedReview]:
        for _, envelope, chain in wires:
            try:
                yield check_review(envelope, chain, self.lab.trust)
            except ComityError:
                review = make_review(self.agreed, self.author, 0)
                yield CheckedReview(review, envelope, chain)

    # -- what was learned ------------------------------------------------------------------------------------------

    def reliability(self) -> dict[str, float]:
        """What the home thinks of each reviewer now."""
        rows = journal.list_reliability(self.connection, self.now_ms)
        return {row.organization: row.reliability for row in rows if row.role == "reviewer"}

    def suspended(self) -> frozenset[str]:
        """Who is suspended now."""
        return frozenset(evidence.suspended(self.connection, self.now_ms))
