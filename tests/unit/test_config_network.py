"""node.yaml: how a node is reached and finds others."""

from __future__ import annotations

from pathlib import Path

import pytest

from comity.errors import ConfigError
from comity_node import config
from comity_node.templates import node_yaml

PEER = "12D3KooWAknGNDQ2V3oeErGz85jQqiRChGNxNrtBavixqnA4PsXE"
RELAY = f"/ip4/192.0.2.7/tcp/4001/p2p/{PEER}"

HEAD = "version: 1\norganization: mercy.example\nnode: n1\n"

WHOLE = (
    HEAD
    + f"""\
listen: none
relays: [{RELAY}]
bootstrap: [{RELAY}]
relay: {{serve: false, circuits_per_organization: 3, reservations_per_organization: 2, megabytes_per_hour: 9}}
discovery: {{gossip: false, kademlia: false, mdns: true, rendezvous: {{serve: true, at: [{RELAY}]}}}}
transport: {{security: [tls, noise], noise: py-libp2p}}
metrics: {{listen: "127.0.0.1:9464"}}
"""
)


def read(directory: Path, text: str) -> config.NetworkConfig:
    path = directory / "node.yaml"
    path.write_text(text)
    return config.load(path).network


def test_a_node_that_only_dials(tmp_path: Path) -> None:
    assert read(tmp_path, WHOLE) == config.NetworkConfig(
        listen=(),
        bootstrap=(RELAY,),
        relays=(RELAY,),
        relay=config.RelayConfig(
            serve=False, circuits_per_organization=3, reservations_per_organization=2, megabytes_per_hour=9
        ),
        discovery=config.DiscoveryConfig(
            gossip=False, kademlia=False, mdns=True, rendezvous=config.RendezvousConfig(serve=True, at=(RELAY,))
        ),
        transport=config.TransportConfig(security=("tls", "noise"), noise="py-libp2p"),
        metrics=config.MetricsConfig("127.0.0.1", 9464),
    )


def test_the_defaults(tmp_path: Path) -> None:
    network = read(tmp_path, HEAD + 'listen: "/ip4/0.0.0.0/tcp/4001"\n')
    assert network == config.NetworkConfig(listen=("/ip4/0.0.0.0/tcp/4001",))
    assert network.transport.security == ("noise", "tls")
    assert not network.relay.serve
    assert not network.metrics.host


def test_a_name_is_announced(tmp_path: Path) -> None:
    network = read(tmp_path, HEAD + "listen: /ip4/127.0.0.1/tcp/0\nannounce: /dns4/node.mercy.example/tcp/4101\n")
    assert network.announce == ("/dns4/node.mercy.example/tcp/4101",)


def test_metrics_over_ip6(tmp_path: Path) -> None:
    network = read(tmp_path, WHOLE.replace("127.0.0.1:9464", "[::1]:9464"))
    assert network.metrics == config.MetricsConfig("::1", 9464)


@pytest.mark.invariant("S3")
@pytest.mark.parametrize(
    ("old", "new", "place", "says"),
    [
        ("serve: false", "serve: true", "7:8", "cannot carry"),
        (f"relays: [{RELAY}]\nbootstrap: [{RELAY}]\n", "", "4:9", "finds nobody"),
        ("listen: none\n", "listen: none\nannounce: [/ip4/192.0.2.1/tcp/1]\n", "5:11", "no address to announce"),
        ("listen: none", "listen: nothing", "4:9", "/ip4/HOST/tcp/PORT"),
        ("gossip: false", "gosip: false", "8:13", 'did you mean "gossip"'),
        ("[tls, noise]", "[tls, plain]", "9:29", "unknown security protocol"),
        ("[tls, noise]", "[tls, tls]", "9:29", "twice"),
        ("noise: py-libp2p", "noise: own", "9:44", "unknown implementation"),
        ('"127.0.0.1:9464"', "localhost:9464", "10:19", "an IP address and a port"),
        ('"127.0.0.1:9464"', '"127.0.0.1:99999"', "10:19", "an IP address and a port"),
        ('"127.0.0.1:9464"', '"1.2.3:9464"', "10:19", "no IP address"),
        ("megabytes_per_hour: 9", "megabytes_per_hour: 0", "7:107", "must be from 1"),
    ],
)
def test_what_is_wrong_is_refused_with_its_place(tmp_path: Path, old: str, new: str, place: str, says: str) -> None:
    assert old in WHOLE
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, WHOLE.replace(old, new, 1))
    assert str(caught.value).startswith(f"{tmp_path / 'node.yaml'}:{place}:")
    assert says in str(caught.value)


@pytest.mark.invariant("S3")
@pytest.mark.parametrize(
    ("lines", "place", "says"),
    [
        ("listen: junk/ip4/127.0.0.1/tcp/1\n", "4:9", "of the form"),
        ("listen: /dns4/node.mercy.example/tcp/1\n", "4:9", "listen on an IP address"),
        ("listen: '/ip6/fe80::1%eth0/tcp/1'\n", "4:9", "no IPv6 address"),
        ("listen: /ip4/127.0.0.1/tcp/1\nannounce: /ip4/0.0.0.0/tcp/1\n", "5:11", "nobody can dial"),
        ("listen: /ip4/127.0.0.1/tcp/1\nannounce: /ip4/192.0.2.1/tcp/0\n", "5:11", "nobody can dial"),
        (f"listen: none\nbootstrap: {RELAY.replace('tcp/4001', 'tcp/0')}\n", "5:12", "nobody can dial"),
        (
            "listen: /ip4/127.0.0.1/tcp/1\ntransport: {security: [tls], noise: py-libp2p}\n",
            "5:37",
            "py-libp2p speaks noise alone",
        ),
    ],
)
def test_an_address_or_a_choice_that_could_only_fail_later_is_refused_here(
    tmp_path: Path, lines: str, place: str, says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, HEAD + lines)
    assert str(caught.value).startswith(f"{tmp_path / 'node.yaml'}:{place}:")
    assert says in str(caught.value)


def test_what_init_writes_for_a_node_that_only_dials_and_for_a_relay(tmp_path: Path) -> None:
    network = read(tmp_path, node_yaml("mercy.example", "n1", listen=[], bootstrap=[RELAY], relays=[RELAY]))
    assert network == config.NetworkConfig(listen=(), bootstrap=(RELAY,), relays=(RELAY,))
    network = read(tmp_path, node_yaml("mercy.example", "n1", listen=["/ip4/0.0.0.0/tcp/4001"], carry=True))
    assert network.relay == config.RelayConfig(serve=True)
