"""`comity init`: a node's home with its key, its CA, a commented node.yaml and a policy that denies everything."""

from __future__ import annotations

import argparse
from pathlib import Path

from comity.ca import OrganizationCa
from comity.errors import ComityError, ConfigError
from comity.ids import SpiffeId, organization_name
from comity.signing import PrivateKey
from comity_node.cli.commands import Command, argument
from comity_node.cli.context import Context, extra, write_new
from comity_node.templates import CA_DIRECTORY, node_yaml, policy_yaml

DEFAULT_LISTEN = "/ip4/0.0.0.0/tcp/4101"


def _run(context: Context, arguments: argparse.Namespace) -> None:
    organization = organization_name(arguments.organization)
    node = SpiffeId(organization, "node", arguments.node)
    with extra("node"):
        from comity_node import config
    path = context.home / config.FILE_NAME
    listen = arguments.listen or [DEFAULT_LISTEN]
    text = node_yaml(
        organization,
        arguments.node,
        listen=[] if listen == ["none"] else listen,
        bootstrap=arguments.bootstrap,
        relays=arguments.relay,
        carry=arguments.carry,
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
            help=f"where peers reach it ({DEFAULT_LISTEN}); may be repeated; none: it only dials",
        ),
        argument("--bootstrap", action="append", default=[], metavar="MULTIADDR", help="a node of another member"),
        argument(
            "--relay",
            action="append",
            default=[],
            metavar="MULTIADDR",
            help="a member through which a node that does not listen is reached; may be repeated",
        ),
        argument("--carry", action="store_true", help="be a relay for members that cannot listen"),
        argument("--no-ca", dest="ca", action="store_false", help="the organization has its CA elsewhere"),
    ),
)
