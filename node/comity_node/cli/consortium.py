"""`comity consortium`: make the trust bundle together, epoch by epoch (`comity.epoch` says who signs which)."""

from __future__ import annotations

import argparse
from pathlib import Path

from comity.bundle import (
    MAX_BUNDLE,
    Anchor,
    Approval,
    Bundle,
    add_member,
    bundle_approval,
    load_bundle,
    new_bundle,
    next_epoch,
    read_bundle,
    remove_member,
    remove_root,
    sign_bundle,
    verify_bundle,
)
from comity.ca import CA_CERTIFICATE_FILE, CaCertificate, OrganizationCa, read_certificates
from comity.errors import BundleInvalid, ChainInvalid, ComityError
from comity_node.cli.certificates import days
from comity_node.cli.commands import Command, argument
from comity_node.cli.context import Context, fields, read_bytes, table, timestamp, write_new
from comity_node.templates import CA_DIRECTORY

_DAY_MS = 86_400_000
_MAX_PEM = 128 * 1024


def own_root(context: Context, path: Path | None) -> bytes:
    """Return this organization's root certificate (DER): of `path`, of the node's chain, or of the home's CA.

    The chain comes first: after a change of roots the home's CA may be the old one still.

    Raises:
        ChainInvalid: there is none where it should be.
        ConfigError: a file cannot be read.
    """
    source = path or context.home / CA_DIRECTORY / CA_CERTIFICATE_FILE
    if path is None and (root := _chains_root(context, needed=not source.exists())):
        return root
    der = read_certificates(read_bytes(source, "the CA's certificate", limit=_MAX_PEM))[0]
    try:
        return CaCertificate.parse(der).der
    except ChainInvalid as error:
        raise ChainInvalid(f"{source}: {error}") from error


def _chains_root(context: Context, *, needed: bool) -> bytes | None:
    try:
        chain = context.config().chain
    except ComityError:  # no node here, or one that cannot be read without the extra: then its CA has to do
        if needed:
            raise
        return None
    if not needed and not chain.exists():
        return None
    certificates = read_certificates(read_bytes(chain, "this node's chain", limit=_MAX_PEM))
    if len(certificates) < 2 and needed:
        raise ChainInvalid(f"{chain} holds no root certificate; name the organization's with --ca")
    return certificates[1] if len(certificates) > 1 else None


def describe(bundle: Bundle, approval: Approval, now_ms: int) -> dict[str, object]:
    """Return a bundle's values by name."""
    return {
        "consortium": bundle.consortium,
        "epoch": bundle.epoch,
        "history": f"since epoch {bundle.lineage[0].epoch}",
        "issued": timestamp(bundle.issued_ms),
        "expires": timestamp(bundle.expires_ms),
        "expired": now_ms >= bundle.expires_ms,
        "digest": bundle.digest.hex(),
        "threshold": bundle.threshold,
        "complete": approval.complete,
        "votes": sorted(approval.votes),
        "votes_needed": approval.needed,
        "must_sign": sorted(approval.must),
        "members": {
            name: {"signed": name in approval.signed, "roots": [root.fingerprint for root in roots]}
            for name, roots in bundle.roots.items()
        },
    }


def _text(values: dict[str, object], bundle: Bundle, approval: Approval) -> str:
    head = fields(
        {
            **{name: value for name, value in values.items() if name not in ("members", "votes", "must_sign")},
            "to sign": approval.wanting() or "-",
        }
    )
    rows = [
        (name, "signed" if name in approval.signed else "missing", ", ".join(root.fingerprint[:16] for root in roots))
        for name, roots in sorted(bundle.roots.items())
    ]
    return f"{head}\n\n{table(rows, ('MEMBER', 'SIGNATURE', 'ROOTS (SHA-256)'))}"


def _read(path: Path) -> bytes:
    return read_bytes(path, "the trust bundle", limit=MAX_BUNDLE)


def _report(context: Context, path: Path, done: str) -> None:
    raw = _read(path)
    bundle, approval = read_bundle(raw), bundle_approval(raw)
    to_sign = f"to sign: {approval.wanting()}" if not approval.complete else "it has the signatures that it takes"
    context.emit(
        {"bundle": str(path), **describe(bundle, approval, context.now_ms)},
        f"{path}: {done}, {bundle.consortium} epoch {bundle.epoch}; {to_sign}",
    )


def _dates(context: Context, arguments: argparse.Namespace) -> dict[str, int]:
    return {"issued_ms": context.now_ms, "expires_ms": context.now_ms + arguments.days * _DAY_MS}


def _create(context: Context, arguments: argparse.Namespace) -> None:
    own = context.home / CA_DIRECTORY / CA_CERTIFICATE_FILE
    certificates = [read_bytes(path, "a CA's certificate", limit=_MAX_PEM) for path in arguments.ca or [own]]
    raw = new_bundle(arguments.name, certificates, **_dates(context, arguments), threshold=arguments.threshold)
    write_new(arguments.bundle, raw, force=arguments.force)
    _report(context, arguments.bundle, "made")


def _next(context: Context, arguments: argparse.Namespace, raw: bytes, what: str) -> None:
    write_new(arguments.bundle, raw, force=True)
    _report(context, arguments.bundle, what)


def _add(context: Context, arguments: argparse.Namespace) -> None:
    certificate = read_bytes(arguments.certificate, "a CA's certificate", limit=_MAX_PEM)
    raw = add_member(_read(arguments.bundle), certificate, **_dates(context, arguments), threshold=arguments.threshold)
    _next(context, arguments, raw, "proposed with one more root")


def _rotate(context: Context, arguments: argparse.Namespace) -> None:
    """The first half: both roots stand side by side, until `retire` takes the old one out."""
    certificate = read_bytes(arguments.certificate, "a CA's certificate", limit=_MAX_PEM)
    members = read_bundle(_read(arguments.bundle)).members
    for der in read_certificates(certificate):
        if (organization := CaCertificate.parse(der).organization) not in members:
            raise BundleInvalid(f"{organization} is no member, and has no root to change: see `comity consortium add`")
    _add(context, arguments)


def _retire(context: Context, arguments: argparse.Namespace) -> None:
    raw = remove_root(
        _read(arguments.bundle), arguments.root, **_dates(context, arguments), threshold=arguments.threshold
    )
    _next(context, arguments, raw, "proposed without that root")


def _remove(context: Context, arguments: argparse.Namespace) -> None:
    raw = remove_member(
        _read(arguments.bundle), arguments.organization, **_dates(context, arguments), threshold=arguments.threshold
    )
    _next(context, arguments, raw, f"proposed without {arguments.organization}")


def _renew(context: Context, arguments: argparse.Namespace) -> None:
    bundle = read_bundle(_read(arguments.bundle))
    raw = next_epoch(bundle, bundle.members, **_dates(context, arguments), threshold=arguments.threshold)
    _next(context, arguments, raw, "proposed with new dates")


def _sign(context: Context, arguments: argparse.Namespace) -> None:
    ca = OrganizationCa.load(arguments.ca or context.home / CA_DIRECTORY)
    write_new(arguments.bundle, sign_bundle(_read(arguments.bundle), ca), force=True)
    _report(context, arguments.bundle, f"signed by {ca.organization}")


def _verify(context: Context, arguments: argparse.Namespace) -> None:
    own = None if arguments.auditor else own_root(context, arguments.ca)
    bundle = load_bundle(arguments.bundle, now_ms=context.now_ms, own_ca=own)
    context.emit(
        {"bundle": str(arguments.bundle), "valid": True, **_described(context, bundle)},
        f"{arguments.bundle}: good, {bundle.consortium} epoch {bundle.epoch}, {len(bundle.members)} members, "
        f"until {timestamp(bundle.expires_ms)}",
    )


def _described(context: Context, bundle: Bundle) -> dict[str, object]:
    return describe(bundle, bundle_approval(bundle.raw), context.now_ms)


def _show(context: Context, arguments: argparse.Namespace) -> None:
    raw = _read(arguments.bundle or context.config().bundle)
    bundle, approval = read_bundle(raw), bundle_approval(raw)
    values = describe(bundle, approval, context.now_ms)
    context.emit(values, _text(values, bundle, approval))


def _seen(target: Path) -> Anchor | None:
    """The epoch that this node has; a damaged file says none, and a proposal the one before it.

    The node itself remembers, too, and does not start with an older one, whatever the file was.
    """
    try:
        bundle = read_bundle(_read(target))
        if bundle_approval(bundle.raw).complete:
            return Anchor.of(bundle)
    except BundleInvalid:
        return None
    before = bundle.parent
    return Anchor(before.epoch, before.digest, consortium=before.consortium) if before else None


def _install(context: Context, arguments: argparse.Namespace) -> None:
    target = context.config().bundle
    raw = _read(arguments.bundle)
    seen = _seen(target) if target.exists() else None
    own = own_root(context, arguments.ca)
    bundle = verify_bundle(raw, now_ms=context.now_ms, own_ca=own, anchor=seen)
    write_new(target, raw, force=True)
    context.emit(
        {"bundle": str(target), **_described(context, bundle)},
        f"{target}: {bundle.consortium} epoch {bundle.epoch} is this node's; a running node takes it in within seconds",
    )


_BUNDLE = argument("bundle", type=Path, metavar="BUNDLE", help="the bundle's file")
_CA_FILE = argument("--ca", type=Path, metavar="FILE", help="this organization's root certificate (HOME/ca/ca.pem)")
_DAYS = argument("--days", type=days, default=365, help="how long it is good (%(default)s)")
_THRESHOLD = argument(
    "--threshold",
    type=int,
    metavar="K",
    help="how many members have to sign the epoch after this one (over two thirds of them, unless it was chosen)",
)
_NEXT = (_DAYS, _THRESHOLD)

COMMAND = Command(
    "consortium",
    "make, sign, verify and show the trust bundle of a consortium",
    description=(
        "A bundle says which organizations form a consortium, and by which roots each vouches for its nodes. Each "
        "change makes the next epoch. All members sign the first one; to each later one as many members of the epoch "
        "before sign as that one's threshold says (over two thirds, unless it was chosen), and with them whoever is "
        "new or has a new root. The file goes from hand to hand until it has its signatures; then every node "
        "installs it. It holds the epochs before, so that a node that was away can follow."
    ),
    commands=(
        Command(
            "create",
            "make the first epoch of a bundle",
            _create,
            (
                _BUNDLE,
                argument("--name", required=True, help="the consortium's name"),
                argument(
                    "--ca",
                    type=Path,
                    action="append",
                    metavar="FILE",
                    help="a member's root certificate (HOME/ca/ca.pem)",
                ),
                *_NEXT,
                argument("--force", action="store_true", help="replace the file if it is there"),
            ),
        ),
        Command(
            "add",
            "propose the next epoch, with one more member or one more root of a member",
            _add,
            (_BUNDLE, argument("certificate", type=Path, metavar="CA", help="its root certificate (ca.pem)"), *_NEXT),
        ),
        Command(
            "remove",
            "propose the next epoch, without one of the members",
            _remove,
            (_BUNDLE, argument("organization", metavar="ORGANIZATION", help="the member that leaves"), *_NEXT),
        ),
        Command(
            "rotate",
            "propose the next epoch, with a member's next root beside its old one",
            _rotate,
            (_BUNDLE, argument("certificate", type=Path, metavar="CA", help="the next root (ca.pem)"), *_NEXT),
            description=(
                "Change an organization's root in two epochs: make the next CA (`comity cert root DIR`), propose an "
                "epoch that has both roots, have it signed by the old CA, the next one and the other members, and "
                "install it everywhere; renew the nodes' certificates with the next CA (`comity cert renew --ca DIR`); "
                "then propose the epoch without the old one (`comity consortium retire`). What was signed before "
                "stays good for whoever has the bundle with its history."
            ),
        ),
        Command(
            "retire",
            "propose the next epoch, without one of the several roots of a member",
            _retire,
            (_BUNDLE, argument("root", metavar="SHA-256", help="the old root's fingerprint, or its beginning"), *_NEXT),
        ),
        Command("renew", "propose the next epoch, with the same members and new dates", _renew, (_BUNDLE, *_NEXT)),
        Command(
            "sign",
            "sign a bundle with this organization's CA",
            _sign,
            (_BUNDLE, argument("--ca", type=Path, metavar="DIR", help="the CA's directory (HOME/ca)")),
        ),
        Command(
            "verify",
            "check a bundle: signed by whom it takes, epoch by epoch, not expired, this organization in it",
            _verify,
            (
                _BUNDLE,
                _CA_FILE,
                argument(
                    "--auditor", action="store_true", help="do not ask for an own CA: the bundle's source is trusted"
                ),
            ),
        ),
        Command(
            "show",
            "show a bundle, also one that is not signed yet",
            _show,
            (argument("bundle", nargs="?", type=Path, metavar="BUNDLE", help="the bundle's file (this node's)"),),
        ),
        Command("install", "verify a bundle and put it where the node reads it", _install, (_BUNDLE, _CA_FILE)),
    ),
)
