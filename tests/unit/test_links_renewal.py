"""A certificate that is renewed while links are up: both sides get to see the new one, and nothing is cut."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from comity.bundle import new_bundle, sign_bundle, verify_bundle
from comity.ca import OrganizationCa, certificate_request
from comity.ids import SpiffeId
from comity.signing import PrivateKey
from comity.trust import Attested, NodeIdentity, TrustStore, read_certificates
from comity_node.links import Links
from comity_node.transport.memory import MemoryNetwork

NOW = datetime(2026, 3, 1, tzinfo=UTC)
NAMES = ("hope.example", "mercy.example")


def issue(authority: OrganizationCa, key: PrivateKey, lifetime: timedelta) -> tuple[bytes, ...]:
    request = certificate_request(key, SpiffeId(authority.organization, "node", "n1"))
    return tuple(read_certificates(authority.issue(request, now=NOW, lifetime=lifetime)))


async def echo(_: Attested, payload: bytes) -> bytes:
    return payload


@pytest.mark.invariant("S2")
@pytest.mark.parametrize("renewed", [True, False])
def test_links_outlive_a_certificate_only_if_it_was_renewed(tmp_path: Path, renewed: bool) -> None:
    authorities = {name: OrganizationCa.create(name, tmp_path / name, NOW) for name in NAMES}
    start_ms = round(NOW.timestamp() * 1000)
    raw = new_bundle(
        "lab",
        [each.certificate_pem for each in authorities.values()],
        issued_ms=start_ms,
        expires_ms=start_ms + 30 * 86_400_000,
    )
    for each in authorities.values():
        raw = sign_bundle(raw, each)
    trust = TrustStore(verify_bundle(raw, now_ms=start_ms, own_ca=None))
    keys = {name: PrivateKey.generate() for name in NAMES}
    short, long = timedelta(minutes=6), timedelta(days=20)
    identities = {
        name: NodeIdentity.of(keys[name], issue(authorities[name], keys[name], short if name == NAMES[0] else long))
        for name in NAMES
    }

    async def main() -> None:
        network = MemoryNetwork()

        def now_ms() -> int:
            return start_ms + 1000 + round(trio.current_time() * 1000)

        links = [
            Links(
                network.transport(each.peer_id),
                each,
                trust,
                echo,
                now_ms=now_ms,
                random_bytes=lambda count: bytes(count),
            )
            for each in identities.values()
        ]
        ours, theirs = links
        async with trio.open_nursery() as nursery:
            for each in links:
                await nursery.start(each.run)
            ours.add_peer(theirs.peer_id)
            await ours.wait_for(theirs.peer_id, 10)
            await theirs.wait_for(ours.peer_id, 10)
            await trio.sleep(60)
            if renewed:
                identities[NAMES[0]].renew(issue(authorities[NAMES[0]], keys[NAMES[0]], long))
                ours.renew()
            await trio.sleep(420)  # by now the first certificate has expired
            for one, other in ((ours, theirs), (theirs, ours)):
                state = one.state(other.peer_id)
                assert state is not None
                assert ((state.state, state.reconnects) == ("connected", 0)) == renewed
            if renewed:
                assert await theirs.request(ours.peer_id, b"hello", 5) == b"hello"
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))
