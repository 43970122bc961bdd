"""Files that change under a running node: taken in whole, refused with a reason, said once, and never half."""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from comity.bundle import add_member, new_bundle, remove_member, sign_bundle, verify_bundle
from comity.ca import OrganizationCa, certificate_request
from comity.errors import OwnCertificateExpired, PolicyDenied, StorageError, StorageFull
from comity.ids import SpiffeId
from comity.signing import PrivateKey
from comity.trust import NodeIdentity, TrustStore, read_certificates
from comity_node.admission import Gate, Question
from comity_node.policy.loader import load, loads_policy
from comity_node.policy.model import Request
from comity_node.protocol.freshness import Freshness
from comity_node.reload import Reloader, expiry
from comity_node.reload.sources import BundleSource, CertificateSource, PolicySource, remembered_anchor
from comity_node.reload.watch import read_stable
from comity_node.storage import audit
from comity_node.storage.database import Database, open_database
from kit.lab import policy

ME, OTHER, THIRD = "mercy.example", "hope.example", "third.example"
NOW = datetime(2026, 3, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def milliseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


@dataclass
class World:
    """A node's files, what reads them, and what hears of a change."""

    home: Path
    database: Database
    gate: Gate
    trust: TrustStore
    identity: NodeIdentity
    authorities: dict[str, OrganizationCa]
    clock: list[datetime]
    bundle: bytes
    heard: list[str] = field(default_factory=list)
    halted: list[str] = field(default_factory=list)
    reloader: Any = None

    @property
    def policy(self) -> Path:
        return self.home / "policy.yaml"

    def hear(self, what: str) -> Callable[[], Awaitable[None]]:
        async def hear() -> None:
            self.heard.append(what)

        return hear

    async def audited(self, action: str) -> list[audit.AuditEntry]:
        entries = await self.database.read(lambda c: audit.entries(c, start=0, limit=1000))
        return [one.entry for one in entries if one.entry.action == action]

    async def ask(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        report = await self.reloader._look(asked=True)
        return report.changed, report.refused

    def certificate(self, *, key: PrivateKey | None = None, name: str = "n1", days: int = 60) -> None:
        request = certificate_request(key or self.identity.key, SpiffeId(ME, "node", name))
        pem = self.authorities[ME].issue(request, now=self.clock[0], lifetime=timedelta(days=days))
        (self.home / "chain.pem").write_bytes(pem)


def signed(raw: bytes, *authorities: OrganizationCa) -> bytes:
    for each in authorities:
        raw = sign_bundle(raw, each)
    return raw


def with_world(home: Path, test: Callable[[World], Awaitable[None]]) -> None:
    clock = [NOW]

    def now_ms() -> int:
        return milliseconds(clock[0])

    authorities = {name: OrganizationCa.create(name, home / name, NOW - DAY) for name in (ME, OTHER, THIRD)}
    key = PrivateKey.generate()
    key.save(home / "node.key")
    chain = read_certificates(
        authorities[ME].issue(
            certificate_request(key, SpiffeId(ME, "node", "n1")), now=NOW - DAY, lifetime=timedelta(days=60)
        )
    )
    ends = {"issued_ms": now_ms() - 1000, "expires_ms": milliseconds(NOW + timedelta(days=300))}
    raw = new_bundle("lab", [authorities[ME].certificate_pem, authorities[OTHER].certificate_pem], **ends)
    raw = signed(raw, authorities[ME], authorities[OTHER])
    (home / "bundle.json").write_bytes(raw)
    (home / "policy.yaml").write_text(policy(ME))
    config: Any = SimpleNamespace(
        organization=ME,
        policy=home / "policy.yaml",
        bundle=home / "bundle.json",
        chain=home / "chain.pem",
        key=home / "node.key",
    )

    async def main() -> None:
        identity = NodeIdentity.of(key, chain)
        trust = TrustStore(verify_bundle(raw, now_ms=now_ms(), own_ca=None))
        async with open_database(home / "node.db") as database:
            gate = Gate(
                identity=identity,
                policy=load(config.policy),
                database=database,
                freshness=Freshness(identity.peer_id),
                now_ms=now_ms,
                random_bytes=random.randbytes,
            )
            world = World(home, database, gate, trust, identity, authorities, clock, raw)
            world.certificate(days=60)
            identity.renew(read_certificates((home / "chain.pem").read_bytes()))
            parts = (config, identity, trust, gate, database)
            world.reloader = Reloader(
                [
                    BundleSource(*parts, world.hear("bundle")),
                    CertificateSource(*parts, world.hear("certificate")),
                    PolicySource(config, gate, database, world.hear("policy")),
                ],
                identity=identity,
                trust=trust,
                database=database,
                now_ms=now_ms,
                halt=world.halted.append,
            )
            assert await world.ask() == ((), ())
            with trio.fail_after(60):
                await test(world)

    trio.run(main)


# -- policy ----------------------------------------------------------------------------------------------------------


@pytest.mark.invariant("S8")
def test_a_good_policy_is_in_the_audit_log_before_it_is_in_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(world: World) -> None:
        old = world.gate.policy
        transact, logged = world.database.transact, []

        async def watched(function: Any) -> Any:
            done = await transact(function)
            logged.extend(await world.audited("policy.changed"))
            assert world.gate.policy is old
            return done

        monkeypatch.setattr(world.database, "transact", watched)
        world.policy.write_text(policy(ME, forbid=["record.send"]))
        (line,), refused = await world.ask()
        assert line.startswith("policy ")
        assert not refused
        assert [entry.policy for entry in logged] == [world.gate.policy.digest] != [old.digest]
        assert logged[0].detail == {"old": old.digest.hex(), "new": world.gate.policy.digest.hex()}
        assert world.heard == ["policy"], "what is under way is looked at again"

    with_world(tmp_path, test)


@pytest.mark.invariant("S3")
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("version: 1\norganization: mercy.example\nrules: [\n", "policy.yaml:"),
        ("version: 1\norganization: mercy.example\nrulez: []\n", "policy.yaml:3:1"),
        ("version: 1\norganization: hope.example\nrules: []\n", "is the policy of hope.example"),
        ("", "policy.yaml"),
        (None, "there is no such file"),
    ],
)
def test_a_bad_policy_is_refused_once_and_until_it_is_mended(tmp_path: Path, text: str | None, says: str) -> None:
    async def test(world: World) -> None:
        old = world.gate.policy
        good = world.policy.read_text()
        world.policy.unlink() if text is None else world.policy.write_text(text)
        for _ in range(3):
            changed, (refused,) = await world.ask()
            assert not changed
            assert says in refused
        assert world.gate.policy is old
        assert [line for line in world.reloader.warnings() if says in line]
        (entry,) = await world.audited("policy.refused")
        assert says in str(entry.detail["reason"])
        world.policy.write_text(good)
        assert await world.ask() == ((), ())
        assert world.reloader.warnings() == []
        assert world.heard == []

    with_world(tmp_path, test)


def test_a_file_that_is_being_written_is_left_until_it_stays_as_it_is(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        old, look = world.gate.policy, world.reloader._look
        whole = policy(ME, forbid=["record.send"])
        world.policy.write_text(whole[: whole.rindex("\n")])  # good by itself, and without its last rule
        assert (await look(asked=False)).changed == ()
        world.policy.write_text(whole)
        assert (await look(asked=False)).changed == ()
        assert world.gate.policy is old
        assert len((await look(asked=False)).changed) == 1
        assert world.gate.policy.digest == loads_policy(whole).digest
        assert (await look(asked=False)).changed == ()

    with_world(tmp_path, test)


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path: Path) -> None:
    path, reads = tmp_path / "file", []
    path.write_text("0")

    def read() -> str:
        reads.append(path.read_text())
        if len(reads) < 3:
            path.write_text("x" * (len(reads) + 1))
        return reads[-1]

    found = read_stable(lambda: [path], read)
    assert found is not None
    assert (len(reads), found[1]) == (3, "xxx")
    os.utime(path, ns=(1, 1))
    assert read_stable(lambda: [path], lambda: path.write_text("y" * random.randrange(1, 10**6))) is None


def test_a_schema_that_the_policy_names_is_watched_with_it(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        schema = world.home / "rows.json"
        schema.write_text('{"version": 1, "fields": {"x": {"type": "number"}}}')
        named = "\ndatasets: {rows: {classification: internal, schema: rows.json}}"
        world.policy.write_text(policy(ME).replace("\nrules:", f"{named}\nrules:"))
        await world.ask()
        before = world.gate.policy.digest
        await world.reloader._look(asked=False)
        schema.write_text('{"version": 1, "fields": {"x": {"type": "integer"}}}')
        lines = [(await world.reloader._look(asked=False)).changed for _ in range(3)]
        assert sum(map(len, lines)) == 1
        assert world.gate.policy.digest != before
        schema.write_text("nonsense")
        for _ in range(2):
            await world.reloader._look(asked=False)
        assert any(str(schema) in line for line in world.reloader.warnings())

    with_world(tmp_path, test)


def test_what_cannot_be_written_down_is_not_put_in_force_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(world: World) -> None:
        old, transact = world.gate.policy, world.database.transact

        async def full(function: Any) -> None:
            raise StorageFull("no room")

        monkeypatch.setattr(world.database, "transact", full)
        world.policy.write_text(policy(ME, forbid=["record.send"]))
        _, (refused,) = await world.ask()
        assert "no room" in refused
        assert world.gate.policy is old
        monkeypatch.setattr(world.database, "transact", transact)
        assert (
            len((await world.reloader._look(asked=False)).changed)
            + len((await world.reloader._look(asked=False)).changed)
            == 1
        )
        assert world.gate.policy is not old

    with_world(tmp_path, test)


def test_what_is_under_way_is_looked_at_again_until_that_has_worked(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        failures = [1, 1]

        async def fails_twice() -> None:
            if failures:
                failures.pop()
                raise StorageError("the disk is read-only")
            world.heard.append("all")

        config: Any = SimpleNamespace(organization=ME, policy=world.policy)
        source = PolicySource(config, world.gate, world.database, fails_twice)
        old, value = world.gate.policy, loads_policy(policy(ME, forbid=["record.send"]))
        for _ in range(2):
            with pytest.raises(StorageError, match="in force, but what is under way"):
                await source.take(value)
        assert world.gate.policy is value is not old
        for _ in range(2):
            assert await source.take(value) == ""
        assert world.heard == ["all"]

    with_world(tmp_path, test)


@pytest.mark.invariant("S1")
def test_in_the_log_all_before_a_new_policy_is_of_the_old_one_and_all_after_it_of_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(world: World) -> None:
        question = Question(Request("record.send", OTHER, purpose="p", dataset="d", kind="synthetic"))
        old, stricter = world.gate.policy, loads_policy(policy(ME, forbid=["record.send"]))
        changed = audit.AuditEntry(kind="effect", action="policy.changed", policy=stricter.digest)
        transact, given = world.database.transact, list[tuple[str, bool]]()
        writing, goes_on = trio.Event(), trio.Event()

        async def slow(function: Any) -> Any:
            if not writing.is_set():
                writing.set()
                await goes_on.wait()
            return await transact(function)

        async def ask(name: str) -> None:
            (decision,) = await world.gate.decide([question])
            given.append((name, decision.allowed))

        async def settle() -> None:
            assert await world.gate.settle(old, [question], lambda *_: given.append(("settled", True))) is None

        monkeypatch.setattr(world.database, "transact", slow)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "under way")
            await writing.wait()
            nursery.start_soon(world.gate.replace, stricter, lambda c: audit.append(c, changed, milliseconds(NOW)))
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(ask, "came later")
            nursery.start_soon(settle)
            await trio.testing.wait_all_tasks_blocked()
            assert given == []
            goes_on.set()
        assert given == [("under way", True), ("came later", False)]
        entries = [one.entry for one in await world.database.read(audit.entries)]
        assert [(one.action, one.decision, one.policy) for one in entries if one.kind in ("decision", "effect")] == [
            ("record.send", "allow", old.digest),
            ("policy.changed", "", stricter.digest),
            ("record.send", "deny", stricter.digest),
        ]

    with_world(tmp_path, test)


@pytest.mark.invariant("S1")
def test_a_policy_that_cannot_be_written_down_or_is_of_another_is_not_put_in_force(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        def full(_: object) -> None:
            raise StorageError("the disk is full")

        old, question = world.gate.policy, Question(Request("record.send", OTHER, purpose="p", dataset="d"))
        with pytest.raises(StorageError):
            await world.gate.replace(loads_policy(policy(ME, forbid=["record.send"])), full)
        with pytest.raises(PolicyDenied, match=r"is of hope\.example"):
            await world.gate.replace(loads_policy(policy(OTHER)))
        assert world.gate.policy is old
        with trio.fail_after(30):  # nobody is kept out by what failed
            await world.gate.decide([question])

    with_world(tmp_path, test)


# -- trust bundle ----------------------------------------------------------------------------------------------------


@pytest.mark.invariant("S2")
def test_a_later_epoch_is_taken_in_and_no_restart_goes_back(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        ends = {"issued_ms": milliseconds(NOW), "expires_ms": milliseconds(NOW + timedelta(days=200))}
        raw = add_member(world.bundle, world.authorities[THIRD].certificate_pem, **ends)
        path = world.home / "bundle.json"
        path.write_bytes(raw)
        _, (refused,) = await world.ask()
        assert "not signed" in refused or "signed by" in refused
        assert world.trust.bundle.epoch == 1
        path.write_bytes(signed(raw, *world.authorities.values()))
        assert (await world.ask())[0] == ("trust bundle epoch 1 -> 2; third.example joined",)
        assert (world.trust.bundle.epoch, world.heard) == (2, ["bundle"])
        assert (await world.database.read(remembered_anchor)).epoch == 2
        (entry,) = await world.audited("bundle.changed")
        assert (entry.kind, entry.detail["epoch"], entry.detail["joined"]) == ("key", 2, [THIRD])
        path.write_bytes(world.bundle)
        _, (refused,) = await world.ask()
        assert "older" in refused
        assert world.trust.bundle.epoch == 2

    with_world(tmp_path, test)


@pytest.mark.invariant("S3")
def test_a_bundle_without_this_node_is_refused(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        ends = {"issued_ms": milliseconds(NOW), "expires_ms": milliseconds(NOW + timedelta(days=200))}
        raw = signed(remove_member(world.bundle, ME, **ends), world.authorities[ME], world.authorities[OTHER])
        (world.home / "bundle.json").write_bytes(raw)
        changed, (refused,) = await world.ask()
        assert not changed
        assert "bundle refused" in refused
        assert ME in world.trust.bundle.members

    with_world(tmp_path, test)


# -- certificate -----------------------------------------------------------------------------------------------------


def test_a_renewed_certificate_is_used_and_no_other(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        first = world.identity.chain
        world.certificate(days=80)
        (line,), _ = await world.ask()
        assert line.startswith("certificate ")
        assert world.heard == ["certificate"]
        renewed = world.identity.chain
        assert renewed != first
        for wrong, says in (
            ({"key": PrivateKey.generate()}, "another key"),
            ({"name": "n2"}, "node/n2"),
        ):
            world.certificate(**wrong)
            changed, (refused,) = await world.ask()
            assert not changed
            assert says in refused
        world.clock[0] += timedelta(days=3)
        world.certificate(days=1)
        world.clock[0] += timedelta(days=2)
        assert "expired" in (await world.ask())[1][0]
        assert world.identity.chain == renewed

    with_world(tmp_path, test)


@pytest.mark.invariant("S3")
def test_nothing_is_signed_with_an_expired_certificate_until_it_is_renewed(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        async def seal() -> bytes:
            audience = PrivateKey.generate().peer_id
            return await world.gate.seal("cards", b"", audience=audience, message_id=world.gate.message_id(audience))

        assert await seal()
        world.reloader._look_at_ends()
        assert world.halted == [""]
        world.clock[0] += timedelta(days=61)
        with pytest.raises(OwnCertificateExpired):
            await seal()
        world.reloader._look_at_ends()
        assert "this node's certificate has expired" in world.halted[-1]
        assert any("has expired" in line for line in world.reloader.warnings())
        world.certificate()
        assert len((await world.ask())[0]) == 1
        world.reloader._look_at_ends()
        assert world.halted[-1] == ""
        assert await seal()

    with_world(tmp_path, test)


@pytest.mark.parametrize(
    ("days", "reached"), [(31, None), (30, 30), (15, 30), (14, 14), (7, 7), (1.5, 7), (1, 1), (0.1, 1), (0, 0), (-5, 0)]
)
def test_what_expires_is_said_at_30_14_7_and_1_days(days: float, reached: int | None) -> None:
    end = milliseconds(NOW + timedelta(days=days))
    assert expiry.step(end, milliseconds(NOW)) == reached
    said = expiry.warning("the certificate", "renew it", end, milliseconds(NOW))
    assert bool(said) == (reached is not None)
    assert ("has expired" in said) == (reached == 0)


def test_each_reminder_comes_once_and_begins_anew_after_a_renewal() -> None:
    reminders, end = expiry.Reminders(), milliseconds(NOW + timedelta(days=40))
    days = [day for day in range(45) if reminders.is_due("it", end, milliseconds(NOW + timedelta(days=day)))]
    assert days == [10, 26, 33, 39, 40]
    assert reminders.is_due("it", milliseconds(NOW + timedelta(days=50)), milliseconds(NOW + timedelta(days=44)))
