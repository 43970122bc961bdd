"""`comity init`: a node's home with its key, its CA, a commented node.yaml and a policy that denies everything."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from comity.ca import OrganizationCa
from comity.errors import ComityError, ConfigError
from comity.ids import SpiffeId, organization_name
from comity.signing import PrivateKey
from comity_node.cli.commands import Command, argument
from comity_node.cli.context import Context, extra, write_new

CA_DIRECTORY = "ca"
DEFAULT_LISTEN = "/ip4/0.0.0.0/tcp/4101"

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
  address: unix:run/control.sock

# What this node holds, by the names that the policy uses.
# datasets:
#   tumour-features:
#     schema: schemas/tumour.json     # the fields that all organizations agreed on
#     private: data/tumour.parquet    # rows that never leave, and that synthetic rows must keep away from

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


def node_yaml(organization: str, node: str, *, listen: Sequence[str], bootstrap: Sequence[str] = ()) -> str:
    """Return the text of a commented `node.yaml`."""
    return _NODE_YAML.format(
        organization=json.dumps(organization),
        node=json.dumps(node),
        listen=json.dumps(list(listen)),
        bootstrap=json.dumps(list(bootstrap)),
    )


def policy_yaml(organization: str) -> str:
    """Return the text of a policy that allows nothing yet."""
    return _POLICY_YAML.format(name=organization, organization=json.dumps(organization))


def _run(context: Context, arguments: argparse.Namespace) -> None:
    organization = organization_name(arguments.organization)
    node = SpiffeId(organization, "node", arguments.node)
    with extra("node"):
        from comity_node import config
    path = context.home / config.FILE_NAME
    text = node_yaml(
        organization, arguments.node, listen=arguments.listen or [DEFAULT_LISTEN], bootstrap=arguments.bootstrap
    )
    context.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.exists():
        raise ConfigError("this is a node's home already; nothing was changed", file=str(path))
    write_new(path, text.encode())
    made = [path]
    try:
        settings = config.load(path)
        if not settings.policy.exists():
            write_new(settings.policy, policy_yaml(organization).encode())
            made.append(settings.policy)
        ca = context.home / CA_DIRECTORY
        if arguments.ca:
            OrganizationCa.create(organization, ca, context.now)
        key = _new_key(settings.key)
    except ComityError:
        for file in made:  # no keys: what could be in use stays
            file.unlink()
        raise
    steps = [
        "comity cert request",
        f"comity cert approve {settings.key.with_name('node.csr.pem')}",
        "comity cert install",
    ]
    context.emit(
        {
            "home": str(context.home),
            "organization": organization,
            "node": str(node),
            "peer_id": key.peer_id,
            "config": str(path),
            "policy": str(settings.policy),
            "ca": str(ca) if arguments.ca else "",
        },
        f"{node} has its home in {context.home}\npeer id  {key.peer_id}\nnext     " + ", then ".join(steps),
    )


def _new_key(path: Path) -> PrivateKey:
    if path.exists():
        return PrivateKey.load(path)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = PrivateKey.generate()
    key.save(path)
    return key


COMMAND = Command(
    "init",
    "make a node's home: key, CA, node.yaml and a policy that denies everything",
    _run,
    (
        argument("--organization", required=True, metavar="NAME", help="such as mercy.example"),
        argument("--node", default="n1", metavar="NAME", help="this node's name in the organization (n1)"),
        argument(
            "--listen",
            action="append",
            metavar="MULTIADDR",
            help=f"where peers reach it ({DEFAULT_LISTEN}); may be repeated",
        ),
        argument("--bootstrap", action="append", default=[], metavar="MULTIADDR", help="a node of another member"),
        argument("--no-ca", dest="ca", action="store_false", help="the organization has its CA elsewhere"),
    ),
)
