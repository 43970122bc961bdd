"""`comity init`: a node's home with its key, its CA, a commented node.yaml and a policy that denies everything."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from comity.ca import OrganizationCa
from comity.errors import ComityError, ConfigError
from comity.ids import SpiffeId, organization_name
from comity.signing import PrivateKey
from comity_node.cli.commands import Command, argument
from comity_node.cli.context import Context, UsageError, extra, write_new
from comity_node.cli.policy_init import PARTNER, left, write_pack
from comity_node.templates import CA_DIRECTORY, node_yaml, policy_yaml

if TYPE_CHECKING:
    from comity_node.packs import Rendered

DEFAULT_LISTEN = "/ip4/0.0.0.0/tcp/4101"


def _run(context: Context, arguments: argparse.Namespace) -> None:
    organization = organization_name(arguments.organization)
    node = SpiffeId(organization, "node", arguments.node)
    with extra("node"):
        from comity_node import config
    path = context.home / config.FILE_NAME
    listen = arguments.listen or [DEFAULT_LISTEN]
    pack = _pack(arguments, organization)
    text = node_yaml(
        organization,
        arguments.node,
        listen=[] if listen == ["none"] else listen,
        bootstrap=arguments.bootstrap,
        relays=arguments.relay,
        carry=arguments.carry,
        datasets={name: {"schema": schema} for name, schema in pack.schemas.items()} if pack else None,
    )
    context.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.exists():
        raise ConfigError("this is a node's home already; nothing was changed", file=str(path))
    write_new(path, text.encode())
    made = [path]
    try:
        settings = config.load(path)
        if pack is not None:
            made += write_pack(pack, settings.policy.parent)
        elif not settings.policy.exists():
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
    said = left(pack) if pack is not None else []
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
        "\n".join(
            [
                f"{node} has its home in {context.home}",
                f"peer id  {key.peer_id}",
                *said,
                f"next     {', then '.join(steps)}",
            ]
        ),
    )


def _pack(arguments: argparse.Namespace, organization: str) -> Rendered | None:
    """Return the pack that was asked for, in this organization's names.

    Raises:
        UsageError: partners are named, and no pack.
        ConfigError: there is no such pack.
    """
    with extra("node"):
        from comity_node import packs
    if not arguments.pack:
        if arguments.partner:
            raise UsageError("--partner goes with --pack NAME (see: comity policy init)")
        return None
    return packs.render(packs.find(arguments.pack), organization, arguments.partner)


def _new_key(path: Path) -> PrivateKey:
    if path.exists():
        return PrivateKey.load(path)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = PrivateKey.generate()
    key.save(path)
    return key


COMMAND = Command(
    "init",
    "make a node's home: key, CA, node.yaml and a policy (of a pack, or one that denies everything)",
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
        argument("--pack", metavar="NAME", help="a policy to start from; `comity policy init` lists them"),
        PARTNER,
        argument("--no-ca", dest="ca", action="store_false", help="the organization has its CA elsewhere"),
    ),
)
