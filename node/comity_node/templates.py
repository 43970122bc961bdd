"""The files that a new home begins with: a commented `node.yaml`, and a policy that allows nothing yet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final

#: Of a home, where an organization's CA lies if it is kept beside the node.
CA_DIRECTORY: Final = "ca"

_NODE_YAML = """\
# One node of one organization. Paths are relative to this file. Unknown keys are errors.
version: 1
organization: {organization}
node: {node}

# paths:                              # these are the defaults
#   key: keys/node.key                # the node's Ed25519 key, mode 0600; it is the libp2p identity
#   chain: keys/node.chain.pem        # its certificate, from `comity cert approve`
#   bundle: consortium.json           # who belongs to the consortium, signed by all its members
#   policy: policy.yaml               # what may leave and what may come in; the default is deny
#   database: node.db                 # journal, records and audit log

# Where other organizations reach this node, and one or more nodes to find the others by.
listen: {listen}
bootstrap: {bootstrap}

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

# limits: {{peers: 256, requests_per_peer: 128, workers: 256}}
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
    control: str = "unix:run/control.sock",
    datasets: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """Return the text of a commented `node.yaml`.

    Args:
        organization: its name.
        node: the node's name in it.
        listen: multiaddrs to listen on.
        bootstrap: multiaddrs of other members' nodes, each with its `/p2p/` part.
        control: address of the control API.
        datasets: by name, the paths of `schema` and `private`.
    """
    held = {name: dict(paths) for name, paths in (datasets or {}).items()}
    # JSON is YAML, and its quotes keep names such as `null` or `1e5` what they are.
    return _NODE_YAML.format(
        organization=json.dumps(organization),
        node=json.dumps(node),
        listen=json.dumps(list(listen)),
        bootstrap=json.dumps(list(bootstrap)),
        control=json.dumps(control),
        datasets=f"{'' if held else '# '}datasets: {json.dumps(held)}",
    )


def policy_yaml(organization: str) -> str:
    """Return the text of a policy that allows nothing yet."""
    return _POLICY_YAML.format(name=organization, organization=json.dumps(organization))
