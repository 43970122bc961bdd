"""The fuzz targets of policies, audit logs, TLS, the tunnels' HTTP and multicast DNS, seeds and any bytes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz import fuzz_audit, fuzz_http, fuzz_mdns, fuzz_policy, fuzz_tls
from kit.nearly import nearly

pytestmark = pytest.mark.invariant("S7")

ANY = st.binary(max_size=300)
YAML = st.text(st.sampled_from("abn:-? [],{}#&*!|>'\"\n\t0129.\u00e4"), max_size=120).map(str.encode)


@given(ANY | YAML)
@settings(max_examples=100)
def test_any_text_is_a_policy_or_refused_with_a_reason(data: bytes) -> None:
    fuzz_policy.one(data)


@given(ANY)
def test_any_bytes_in_an_audit_log_are_refused_by_name(data: bytes) -> None:
    fuzz_audit.one(data)


@given(ANY)
@settings(max_examples=30)
def test_any_extension_proves_no_key(data: bytes) -> None:
    fuzz_tls.one(data)


@given(ANY)
def test_any_bytes_pass_no_tunnel(data: bytes) -> None:
    fuzz_http.one(data)


@given(ANY)
def test_any_packet_of_multicast_dns_is_read_or_passed_over(data: bytes) -> None:
    fuzz_mdns.one(data)


@pytest.mark.parametrize("number", range(len(fuzz_policy.SEEDS)))
def test_good_policies_with_bytes_changed_are_policies_or_refused(number: int) -> None:
    seed = fuzz_policy.SEEDS[number]
    for data in (seed, *nearly(seed, 8)):
        fuzz_policy.one(data)


@pytest.mark.parametrize("number", range(len(fuzz_audit.SEEDS)))
def test_good_entries_and_notes_with_bytes_changed_are_refused_by_name(number: int) -> None:
    seed = fuzz_audit.SEEDS[number]
    for data in (seed, *nearly(seed, 100)):
        fuzz_audit.one(data)


@pytest.mark.parametrize("number", range(len(fuzz_tls.SEEDS)))
def test_good_extensions_with_bytes_changed_prove_no_key(number: int) -> None:
    seed = fuzz_tls.SEEDS[number]
    for data in (seed, *nearly(seed, 40)):
        fuzz_tls.one(data)


@pytest.mark.parametrize("number", range(len(fuzz_http.SEEDS)))
def test_good_requests_with_bytes_changed_pass_as_they_are_or_not_at_all(number: int) -> None:
    seed = fuzz_http.SEEDS[number]
    for data in (seed, *nearly(seed, 100)):
        fuzz_http.one(data)


@pytest.mark.parametrize("number", range(len(fuzz_mdns.SEEDS)))
def test_good_packets_with_bytes_changed_are_read_or_passed_over(number: int) -> None:
    seed = fuzz_mdns.SEEDS[number]
    for data in (seed, *nearly(seed, 100)):
        fuzz_mdns.one(data)
