"""Fixtures that several parts use."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import hypothesis
import pytest

from comity.ids import SpiffeId
from comity.signing import PrivateKey
from comity.trust import (
    NodeIdentity,
    OrganizationCa,
    TrustStore,
    certificate_request,
    new_bundle,
    read_certificates,
    sign_bundle,
    verify_bundle,
)

# No deadline for a single example: machines are busy. In CI the same examples each time.
hypothesis.settings.register_profile("comity", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("comity")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the `comity` command in this process; returns exit code, standard output and standard error."""

    from comity_node.cli import main

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        code = main([str(each) for each in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def consortium(tmp_path: Path) -> Callable[..., tuple[TrustStore, dict[str, NodeIdentity]]]:
    """Make a consortium of real CAs: returns its trust store and one node of each organization.

    A second call makes another consortium, whose organizations have other keys.
    """

    def build(*organizations: str, name: str = "oncology") -> tuple[TrustStore, dict[str, NodeIdentity]]:
        now = datetime.now(UTC)
        now_ms = int(now.timestamp() * 1000)
        directory = Path(tempfile.mkdtemp(dir=tmp_path))
        cas = {each: OrganizationCa.create(each, directory / each, now) for each in organizations}
        nodes = {}
        for each, ca in cas.items():
            key = PrivateKey.generate()
            pem = ca.issue(certificate_request(key, SpiffeId(each, "node", "n1")), now=now)
            nodes[each] = NodeIdentity.of(key, read_certificates(pem))
        raw = new_bundle(
            name,
            [ca.certificate_pem for ca in cas.values()],
            issued_ms=now_ms,
            expires_ms=now_ms + 86_400_000,
        )
        for ca in cas.values():
            raw = sign_bundle(raw, ca)
        return TrustStore(verify_bundle(raw, now_ms=now_ms, own_ca=None)), nodes

    return build
