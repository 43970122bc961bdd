"""The files that a new home begins with: a commented `node.yaml`, and a policy that allows nothing yet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final

#: Of a home, where an organization's CA lies if it is kept beside the node.
CA_DIRECTORY: Final = "ca"

_RELAYS = "# relays: [/ip4/192.0.2.7/tcp/4001/p2p/12D3KooW...]"
_RELAY = (
    "# relay: {serve: false, reservations_per_organization: 4, circuits_per_organization: 32, megabytes_per_hour: 4096}"
)
_NODE_YAML = """\
# One node of one organization. Paths are relative to this file. Unknown keys are errors.
version: 1
organization: {organization}
node: {node}

# paths:                              # these are the defaults
#   key: keys/node.key                # the node's Ed25519 key, mode 0600; it is the libp2p identity
#   chain: keys/node.chain.pem        # its certificate, from `comity cert approve`
#   bundle: consortium.json           # who belongs to the consortium, signed by its members
#   policy: policy.yaml               # what may leave and what may come in; the default is deny
#   database: node.db                 # journal, records and audit log

# Where other organizations reach this node, and one or more nodes to find the others by.
listen: {listen}
bootstrap: {bootstrap}
# announce: [/ip4/192.0.2.1/tcp/4001]  # where they dial, if `listen` does not say it (address translation)

# A node that may not listen says `listen: none` and is reached through members that carry its connections, which they
# cannot read:
{relays}
# This node carries them for others, if its policy allows it (`relay.carry`); these are the defaults:
{relay}

# discovery: {{gossip: true, kademlia: true, mdns: false, rendezvous: {{serve: false, at: []}}}}
# transport: {{security: [noise, tls], noise: comity}}  # noise: py-libp2p takes the stock implementation
# metrics: {{listen: none}}            # for Prometheus, for instance 127.0.0.1:9464

# Where this organization's own programs reach the node. TCP takes mutual TLS and nothing less:
#   address: 10.0.0.7:7443
#   tls: {{certificate: keys/control.pem, key: keys/control.key, client_ca: keys/clients.pem}}
control:
  address: {control}

# What this node holds, by the names that the policy uses:
#   tumour-features:
#     schema: schemas/tumour.json     # the fields that all organizations agreed on
#     private: data/tumour.parquet    # rows that never leave, and that synthetic rows must keep away from
{datasets}

# limits: {{peers: 256, requests_per_peer: 128, messages_per_second: 5000, workers: 256}}

# Take no peer whose certificate was issued longer ago, in case word of its revocation is kept from this node. All
# members have to renew theirs in that time (comity cert renew); without it, a certificate is good until it expires.
# And for how long to ask nobody to review who is proven to have lied (two signed documents that contradict each other).
# trust: {{certificates_within: 7d, suspension: 30d}}

# What this organization asks of others for a row of a skill, in the unit that the consortium has agreed on:
# prices: {{answer: 0.5}}
log: {{level: info, format: text}}
"""

_POLICY_YAML = """\
# What may leave {name}, to whom, for what, in which form. What no rule allows is denied; a forbid beats every allow.
# `comity policy lint` checks this file, `comity policy explain` says why a request is decided as it is.
version: 1
organization: {organization}

# datasets:
#   tumour-features: {{classification: confidential, subject: patient}}

rules:
  - id: never-raw-rows
    effect: forbid
    action: "*"
    data: {{kind: raw}}
#  - id: offer-synthetic-tumours
#    effect: allow
#    action: record.send
#    to: {{organization: [stlukes.example], role: [validator]}}
#    data: {{dataset: tumour-features, kind: synthetic}}
#    purpose: [breast-cancer-screening]
#    obligations:
#      min_distance_to_private: 0.15
#      review: {{quorum: 3, distinct_organizations: true, min_score: 0.7}}
#      onward: never
"""


def node_yaml(
    organization: str,
    node: str,
    *,
    listen: Sequence[str],
    bootstrap: Sequence[str] = (),
    relays: Sequence[str] = (),
    carry: bool = False,
    control: str = "unix:run/control.sock",
    datasets: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """Return the text of a commented `node.yaml`.

    Args:
        organization: its name.
        node: the node's name in it.
        listen: multiaddrs to listen on; none: it only dials.
        bootstrap: multiaddrs of other members' nodes, each with its `/p2p/` part.
        relays: multiaddrs of members through which it is reached, each with its `/p2p/` part.
        carry: whether it carries connections of others.
        control: address of the control API.
        datasets: by name, the paths of `schema` and `private`.
    """
    held = {name: dict(paths) for name, paths in (datasets or {}).items()}
    # JSON is YAML, and its quotes keep names such as `null` or `1e5` what they are.
    return _NODE_YAML.format(
        organization=json.dumps(organization),
        node=json.dumps(node),
        listen=json.dumps(list(listen)) if listen else "none",
        relays=f"relays: {json.dumps(list(relays))}" if relays else _RELAYS,
        relay="relay: {serve: true}" if carry else _RELAY,
        bootstrap=json.dumps(list(bootstrap)),
        control=json.dumps(control),
        datasets=f"{'' if held else '# '}datasets: {json.dumps(held)}",
    )


def policy_yaml(organization: str) -> str:
    """Return the text of a policy that allows nothing yet."""
    return _POLICY_YAML.format(name=organization, organization=json.dumps(organization))
