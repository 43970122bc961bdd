"""The fuzz targets of signed documents, over their seeds and what hypothesis makes of them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz import fuzz_bundle, fuzz_chain, fuzz_revocation, fuzz_statement, fuzz_terms
from kit.nearly import nearly

pytestmark = pytest.mark.invariant("S7")

ANY = st.binary(max_size=300)


@given(ANY)
@settings(max_examples=30)
def test_any_bytes_prove_nothing(data: bytes) -> None:
    fuzz_statement.one(data)


@given(ANY)
@settings(max_examples=50)
def test_any_bytes_are_nobodys_certificate(data: bytes) -> None:
    fuzz_chain.one(data)


@given(ANY)
@settings(max_examples=30)
def test_any_bytes_are_no_bundle(data: bytes) -> None:
    fuzz_bundle.one(data)


@given(ANY)
@settings(max_examples=50)
def test_any_bytes_revoke_nothing(data: bytes) -> None:
    fuzz_revocation.one(data)


@given(ANY)
@settings(max_examples=50)
def test_any_bytes_are_no_terms(data: bytes) -> None:
    fuzz_terms.one(data)


@pytest.mark.parametrize("number", range(len(fuzz_statement.SEEDS)))
def test_good_statements_with_bytes_changed_prove_nothing_else(number: int) -> None:
    seed = fuzz_statement.SEEDS[number]
    for data in (seed, *nearly(seed, 25)):
        fuzz_statement.one(data)


@pytest.mark.parametrize("number", range(len(fuzz_chain.SEEDS)))
def test_good_certificates_with_bytes_changed_name_nobody(number: int) -> None:
    seed = fuzz_chain.SEEDS[number]
    for data in (seed, *nearly(seed, 60)):
        fuzz_chain.one(data)


@pytest.mark.parametrize("number", range(len(fuzz_bundle.SEEDS)))
def test_good_bundles_with_bytes_changed_are_no_bundles(number: int) -> None:
    seed = fuzz_bundle.SEEDS[number]
    for data in (seed, *nearly(seed, 25)):
        fuzz_bundle.one(data)


@pytest.mark.parametrize("number", range(len(fuzz_revocation.SEEDS)))
def test_good_revocations_with_bytes_changed_revoke_nothing_else(number: int) -> None:
    seed = fuzz_revocation.SEEDS[number]
    for data in (seed, *nearly(seed, 60)):
        fuzz_revocation.one(data)


@pytest.mark.parametrize("number", range(len(fuzz_terms.SEEDS)))
def test_good_terms_with_bytes_changed_are_other_terms(number: int) -> None:
    seed = fuzz_terms.SEEDS[number]
    for data in (seed, *nearly(seed, 60)):
        fuzz_terms.one(data)
