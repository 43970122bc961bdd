"""A node whose own files are wrong does not start, and says in one line which file and why."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio

from comity.bundle import new_bundle, sign_bundle
from comity.ca import OrganizationCa, certificate_request
from comity.errors import ComityError
from comity.ids import SpiffeId
from comity.signing import PrivateKey
from comity_node import config
from comity_node.node import Node, run
from comity_node.storage import journal
from comity_node.storage.database import open_database
from comity_node.templates import node_yaml
from kit.lab import policy

ME = "mercy.example"
NODE = SpiffeId(ME, "node", "n1")
NOW = datetime.now(UTC)


class Home:
    """A node's home with everything in place, under a short path (a socket's may have 100 characters)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "keys").mkdir()
        self.ca = OrganizationCa.create(ME, path / "ca", NOW)
        self.key = PrivateKey.generate()
        self.key.save(path / "keys" / "node.key")
        self.certify(self.ca)
        self.write_bundle(NOW, timedelta(days=1))
        (path / "node.yaml").write_text(node_yaml(ME, "n1", listen=["/ip4/127.0.0.1/tcp/0"], bootstrap=[]))
        (path / "policy.yaml").write_text(policy(ME))

    def certify(self, ca: OrganizationCa, *, at: datetime = NOW, key: PrivateKey | None = None) -> None:
        leaf = ca.issue(certificate_request(key or self.key, NODE), now=at, lifetime=timedelta(days=1))
        (self.path / "keys" / "node.chain.pem").write_bytes(leaf)

    def write_bundle(self, issued: datetime, lifetime: timedelta) -> None:
        issued_ms, expires_ms = (round(each.timestamp() * 1000) for each in (issued, issued + lifetime))
        raw = new_bundle("tumours", [self.ca.certificate_pem], issued_ms=issued_ms, expires_ms=expires_ms)
        (self.path / "consortium.json").write_bytes(sign_bundle(raw, self.ca))

    def refusal(self) -> str:
        with pytest.raises(ComityError) as caught:
            run(config.load(self.path / "node.yaml"), on_ready=lambda node: node.stop())
        said = caught.value.diagnostics()
        assert "\n" not in said
        return said


@pytest.fixture
def home() -> Iterator[Home]:
    with tempfile.TemporaryDirectory(prefix="comity") as directory:
        yield Home(Path(directory))


def expired_certificate(home: Home) -> list[str]:
    home.certify(home.ca, at=NOW - timedelta(days=3))
    return ["consortium.json", "certificate of spiffe://mercy.example/node/n1 has expired"]


def foreign_certificate(home: Home) -> list[str]:
    other = home.path / "other"
    home.certify(OrganizationCa.create(ME, other, NOW))
    return ["consortium.json"]


def certificate_of_another_key(home: Home) -> list[str]:
    home.certify(home.ca, key=PrivateKey.generate())
    return ["node.chain.pem", "of another key"]


def expired_bundle(home: Home) -> list[str]:
    home.write_bundle(NOW - timedelta(days=3), timedelta(days=1))
    return ["consortium.json", "has expired"]


def older_epoch(home: Home) -> list[str]:
    async def remember() -> None:
        async with open_database(home.path / "node.db") as database:
            await database.transact(lambda c: journal.raise_number(c, "bundle.epoch", 4))

    trio.run(remember)
    return ["consortium.json", "epoch 1", "4"]


def readable_key(home: Home) -> list[str]:
    (home.path / "keys" / "node.key").chmod(0o644)
    return ["node.key"]


def policy_of_another(home: Home) -> list[str]:
    (home.path / "policy.yaml").write_text(policy("hope.example"))
    return ["policy.yaml:1", "is the policy of hope.example"]


def malformed_policy(home: Home) -> list[str]:
    (home.path / "policy.yaml").write_text("version: 1\norganization: mercy.example\nrules: [")
    return ["policy.yaml:3"]


def malformed_config(home: Home) -> list[str]:
    (home.path / "node.yaml").write_text("version: 1\norganization: mercy.example\nlisten: {")
    return ["node.yaml:3"]


def unknown_key(home: Home) -> list[str]:
    file = home.path / "node.yaml"
    file.write_text(file.read_text() + "\nlisten_on: everything\n")
    return ["node.yaml:", "listen_on"]


def garbage_database(home: Home) -> list[str]:
    (home.path / "node.db").write_bytes(b"garbage " * 1000)
    return ["node.db", "no SQLite database"]


def missing_schema(home: Home) -> list[str]:
    file = home.path / "node.yaml"
    file.write_text(file.read_text() + "\ndatasets:\n  rows: {schema: data/schema.json}\n")
    return ["schema.json"]


@pytest.mark.invariant("S3")
@pytest.mark.parametrize(
    "spoil",
    [
        expired_certificate,
        foreign_certificate,
        certificate_of_another_key,
        expired_bundle,
        older_epoch,
        readable_key,
        policy_of_another,
        malformed_policy,
        malformed_config,
        unknown_key,
        garbage_database,
        missing_schema,
    ],
    ids=lambda spoil: spoil.__name__.replace("_", " "),
)
def test_a_node_does_not_start_with(home: Home, spoil: Callable[[Home], list[str]]) -> None:
    wanted = spoil(home)
    said = home.refusal()
    assert all(each in said for each in wanted), said


def test_a_node_starts_with_this_home(home: Home) -> None:
    """The refusals above are for what was spoilt, and for nothing else."""
    ready = []

    def stop(node: Node) -> None:
        ready.append(node.identity.organization)
        node.stop()

    run(config.load(home.path / "node.yaml"), on_ready=stop)
    assert ready == [ME]
    assert (home.path / "node.db").stat().st_mode & 0o777 == 0o600
