"""What is mutated, and the tests that have to see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Target:
    """A module and the test files that hold it (or pytest's node ids, or its `--deselect=ID`), the quickest first."""

    module: str
    tests: tuple[str, ...]


_POLICY: Final = (
    "tests/unit/test_policy_decide.py",
    "tests/unit/test_policy_refusals.py",
    "tests/unit/test_policy_language.py",
    "tests/unit/test_policy_forms.py",
    "tests/unit/test_policy_bounds.py",
    "tests/unit/test_mutants_policy.py",
)

_ENFORCED: Final = (
    "tests/unit/test_admission_gate.py",
    "tests/unit/test_mutants_gate.py",
    "tests/unit/test_mutants_settling.py",
    "tests/unit/test_admission_approvals.py",
    "tests/unit/test_admission_ledgers.py",
    # Seconds each, and the others see what they see.
    "--deselect=tests/unit/test_admission_ledgers.py::test_a_budget_and_a_quota_survive_kill_9",
    "--deselect=tests/unit/test_admission_ledgers.py::test_no_interleaving_spends_more_than_the_budget",
)

TARGETS: Final = {
    "quorum": Target("comity_node.protocol.quorum", ("tests/unit/test_quorum_ballot.py",)),
    "certificate": Target(
        "comity.certificate", ("tests/unit/test_certificate_verify.py", "tests/unit/test_mutants_certificate.py")
    ),
    "freshness": Target(
        "comity_node.protocol.freshness",
        (
            "tests/unit/test_freshness_limits.py",
            "tests/unit/test_mutants_freshness.py",
            # Without the state machine of that file: the mutants that live would cost a minute each.
            "tests/property/test_freshness_machine.py::test_a_window_is_a_set_that_forgets_what_is_below_it",
            "tests/property/test_freshness_machine.py::test_no_id_is_made_twice_and_each_recipient_s_count_up",
        ),
    ),
    "engine": Target("comity_node.policy.engine", _POLICY),
    "matching": Target("comity_node.policy.matching", _POLICY),
    "conditions": Target("comity_node.policy.conditions", _POLICY),
    "index": Target("comity_node.policy.index", ("tests/unit/test_mutants_index.py", *_POLICY)),
    "lattice": Target(
        "comity_node.policy.lattice",
        ("tests/unit/test_mutants_lattice.py", "tests/unit/test_policy_obligations.py", *_POLICY),
    ),
    "shaping": Target(
        "comity_node.policy.shaping",
        ("tests/unit/test_mutants_shaping.py", "tests/unit/test_policy_obligations.py", *_POLICY),
    ),
    "gate": Target(
        "comity_node.admission.gate", ("tests/unit/test_admission_gate.py", "tests/unit/test_mutants_gate.py")
    ),
    "gathering": Target(
        "comity_node.admission.gathering",
        ("tests/unit/test_admission_gathering.py", "tests/unit/test_mutants_gathering.py"),
    ),
    "settling": Target("comity_node.admission.settling", _ENFORCED),
    "questions": Target("comity_node.admission.questions", _ENFORCED),
    "approvals": Target("comity_node.admission.approvals", _ENFORCED),
    "knowledge": Target("comity_node.admission.knowledge", ("tests/unit/test_mutants_gate.py",)),
    "shapes": Target(
        "comity_node.admission.shapes", ("tests/unit/test_admission_shapes.py", "tests/unit/test_mutants_gate.py")
    ),
    "drafts": Target("comity_node.admission.drafts", ("tests/unit/test_mutants_admission.py",)),
    "attested": Target("comity_node.admission.attested", ("tests/unit/test_mutants_admission.py",)),
    "labels": Target("comity_node.admission.labels", ("tests/unit/test_mutants_admission.py",)),
    "pseudonyms": Target("comity_node.admission.pseudonyms", ("tests/unit/test_mutants_admission.py",)),
    "noise": Target("comity_node.admission.noise", ("tests/unit/test_mutants_admission.py",)),
    "archive": Target("comity_node.admission.archive", ("tests/unit/test_mutants_archive.py",)),
    "retrospect": Target("comity_node.admission.retrospect", ("tests/unit/test_mutants_retrospect.py",)),
    "watching": Target("comity_node.admission.watching", ("tests/unit/test_mutants_archive.py",)),
    "records": Target(
        "comity_node.admission.records",
        (
            "tests/unit/test_mutants_records.py",
            "tests/unit/test_admission_records.py",
            "tests/unit/test_admission_obligations.py",
            # Of noise and of keys: they see nothing here that the others do not.
            "--deselect=tests/unit/test_admission_obligations.py::test_an_attestation_of_noise_that_does_not_say_enough",
            "--deselect=tests/unit/test_admission_obligations.py::test_noise_is_worth_no_more_than_its_epsilon",
            "--deselect=tests/unit/test_admission_obligations.py::test_noise_has_the_scale_of_its_bounds",
            "--deselect=tests/unit/test_admission_obligations.py::test_without_opendp_noise_is_refused_and_the_extra_named",
            "--deselect=tests/unit/test_admission_obligations.py::test_a_key_of_pseudonyms_that_others_can_read_is_refused",
            "--deselect=tests/unit/test_admission_obligations.py::test_enough_attested_noise_is_believed",
        ),
    ),
}
