"""Which test holds each kind of bad input: refused in one line with its place, nothing lost, the node stays up.

malformed YAML:
    test_refused_with_its_place
    test_a_node_does_not_start_with

unknown keys:
    test_a_bad_node_yaml_is_one_line_with_its_place
    test_a_rule_is_refused_with_its_place
    test_what_keeps_a_node_from_starting

own certificate expired or foreign:
    test_a_node_does_not_start_with
    test_identity_from_files

a peer's certificate expired:
    test_a_certificate_that_expires_ends_the_link
    test_times

a peer's certificate foreign:
    test_a_foreign_node_is_cut_before_any_other_protocol_answers
    test_a_node_of_a_foreign_ca_is_cut_and_gets_no_answer

wrong consortium epoch:
    test_another_epoch_is_refused_with_the_reason
    test_another_bundle_is_refused_with_the_reason
    test_a_node_does_not_start_with

garbage bytes on the port:
    test_garbage_on_the_port_hurts_nobody
    test_garbage_on_the_socket_harms_nobody

an oversized frame:
    test_an_oversized_frame_closes_that_stream_only
    test_a_huge_length_prefix_costs_nothing
    test_a_message_over_the_limit_is_refused_and_the_node_stays_up

a forged envelope:
    test_no_handler_sees_what_was_not_sent_to_it_by_whom_it_came_from
    test_every_changed_byte_is_refused

a replayed envelope:
    test_everything_delivered_twice_is_as_if_delivered_once
    test_a_message_that_was_admitted_is_refused_after_a_restart

a member's nonsense:
    test_votes_that_no_ballot_takes_are_refused_and_harm_nobody
    test_offers_that_are_not_what_was_agreed
    test_records_that_no_quorum_certified_are_not_kept
    test_proposals_that_no_node_answers_with_its_signature
    test_agreements_that_are_none
    test_updates_whose_manifest_is_not_for_here_and_now

a card of somebody else's:
    test_a_card_of_somebody_else_or_of_another_time
    test_a_copied_card_that_another_node_signs_is_refused

a message from an expelled member:
    test_a_hello_of_somebody_else_or_of_another_time
    test_a_member_that_is_expelled_while_it_is_linked_is_refused_with_its_next_sign_of_life
    test_an_old_root_and_an_expelled_member_count_for_their_time_only

an old epoch, or another one of the same number:
    test_a_node_two_epochs_behind_is_told_which_epoch_it_has
    test_of_a_fork_the_error_names_who_signed_both
    test_a_store_follows_its_bundle_at_once_keeps_revocations_and_tells_who_asked

a clock that is off by a day:
    test_a_hello_of_somebody_else_or_of_another_time
    test_a_message_from_a_clock_that_is_off_by_a_day
    test_a_card_of_somebody_else_or_of_another_time

a certificate or a bundle with a flipped byte:
    test_every_byte_of_a_certificate_counts
    test_one_changed_byte_of_a_history_is_refused

a worker that raises:
    test_a_worker_that_raises_returns_the_wrong_type_or_exits_goes_on
    test_a_generator_that_fails_costs_a_retry
    test_a_validator_that_fails_costs_a_retry

a worker of the wrong type:
    test_a_result_that_is_not_json_is_named_by_its_place
    test_a_generator_that_fails_costs_a_retry
    test_a_validator_that_fails_costs_a_retry

a worker that dies in mid-task:
    test_work_of_a_killed_worker_is_done_by_the_next
    test_killed_processes_lose_nothing_and_the_counts_add_up

an ONNX file that is not pinned:
    test_a_changed_model_is_not_opened
    test_a_validator_whose_model_was_changed_scores_nothing

a full disk:
    test_a_full_disk_stops_the_work_and_nothing_else
    test_a_full_disk_refuses_and_goes_on_when_there_is_room
    test_a_full_disk_is_one_line

a port in use:
    test_a_port_in_use_is_named
    test_what_keeps_a_node_from_starting
"""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
#: Entries above.
WANTED = 22


def table() -> dict[str, list[str]]:
    entries = re.findall(r"^(\S.*):\n((?: {4}test_\w+\n)+)", __doc__ or "", flags=re.MULTILINE)
    return {name: tests.split() for name, tests in entries}


def defined() -> set[str]:
    texts = (path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py"))
    return {name for text in texts for name in re.findall(r"^ *def (test_\w+)\(", text, flags=re.MULTILINE)}


def test_every_bad_input_has_a_test() -> None:
    held = table()
    assert len(held) == WANTED
    assert all(held.values())
    missing = {name for names in held.values() for name in names} - defined()
    assert not missing
