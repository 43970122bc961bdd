"""`comity consortium`: make the trust bundle together. Every member signs every epoch."""

from __future__ import annotations

import argparse
from pathlib import Path

from comity.bundle import (
    MAX_BUNDLE,
    Bundle,
    add_member,
    load_bundle,
    new_bundle,
    read_bundle,
    remove_member,
    sign_bundle,
    unsigned_members,
    verify_bundle,
)
from comity.ca import CA_CERTIFICATE_FILE, CaCertificate, OrganizationCa, read_certificates
from comity.errors import ChainInvalid
from comity_node.cli.certificates import days
from comity_node.cli.commands import Command, argument
from comity_node.cli.context import Context, fields, read_bytes, table, timestamp, write_new
from comity_node.templates import CA_DIRECTORY

_DAY_MS = 86_400_000
_MAX_PEM = 128 * 1024


def own_root(context: Context, path: Path | None) -> bytes:
    """Return this organization's root certificate (DER): of `path`, of the home's CA, or of the node's chain.

    Raises:
        ChainInvalid: there is none where it should be.
        ConfigError: a file cannot be read.
    """
    certificate = context.home / CA_DIRECTORY / CA_CERTIFICATE_FILE
    if path is None and not certificate.exists():
        chain = context.config().chain
        certificates = read_certificates(read_bytes(chain, "this node's chain", limit=_MAX_PEM))
        if len(certificates) < 2:
            raise ChainInvalid(f"{chain} holds no root certificate; name the organization's with --ca")
        return certificates[1]
    source = path or certificate
    der = read_certificates(read_bytes(source, "the CA's certificate", limit=_MAX_PEM))[0]
    try:
        return CaCertificate.parse(der).der
    except ChainInvalid as error:
        raise ChainInvalid(f"{source}: {error}") from error


def describe(bundle: Bundle, missing: tuple[str, ...], now_ms: int) -> dict[str, object]:
    """Return a bundle's values by name; `missing` are the members that have not signed."""
    return {
        "consortium": bundle.consortium,
        "epoch": bundle.epoch,
        "issued": timestamp(bundle.issued_ms),
        "expires": timestamp(bundle.expires_ms),
        "expired": now_ms >= bundle.expires_ms,
        "digest": bundle.digest.hex(),
        "members": {
            name: {"signed": name not in missing, "roots": [root.fingerprint for root in roots]}
            for name, roots in bundle.roots.items()
        },
    }


def _text(values: dict[str, object], bundle: Bundle, missing: tuple[str, ...]) -> str:
    head = fields({name: value for name, value in values.items() if name != "members"})
    rows = [
        (name, "missing" if name in missing else "signed", ", ".join(root.fingerprint[:16] for root in roots))
        for name, roots in sorted(bundle.roots.items())
    ]
    return f"{head}\n\n{table(rows, ('MEMBER', 'SIGNATURE', 'ROOTS (SHA-256)'))}"


def _read(path: Path) -> bytes:
    return read_bytes(path, "the trust bundle", limit=MAX_BUNDLE)


def _report(context: Context, path: Path, done: str) -> None:
    raw = _read(path)
    bundle, missing = read_bundle(raw), unsigned_members(raw)
    to_sign = f"to sign: {', '.join(missing)}" if missing else "signed by all members"
    context.emit(
        {"bundle": str(path), **describe(bundle, missing, context.now_ms)},
        f"{path}: {done}, {bundle.consortium} epoch {bundle.epoch}; {to_sign}",
    )


def _create(context: Context, arguments: argparse.Namespace) -> None:
    own = context.home / CA_DIRECTORY / CA_CERTIFICATE_FILE
    certificates = [read_bytes(path, "a CA's certificate", limit=_MAX_PEM) for path in arguments.ca or [own]]
    expires = context.now_ms + arguments.days * _DAY_MS
    raw = new_bundle(arguments.name, certificates, issued_ms=context.now_ms, expires_ms=expires)
    write_new(arguments.bundle, raw, force=arguments.force)
    _report(context, arguments.bundle, "made")


def _add(context: Context, arguments: argparse.Namespace) -> None:
    certificate = read_bytes(arguments.certificate, "a CA's certificate", limit=_MAX_PEM)
    expires = context.now_ms + arguments.days * _DAY_MS
    raw = add_member(_read(arguments.bundle), certificate, issued_ms=context.now_ms, expires_ms=expires)
    write_new(arguments.bundle, raw, force=True)
    _report(context, arguments.bundle, "the next epoch, which all members sign anew")


def _remove(context: Context, arguments: argparse.Namespace) -> None:
    expires = context.now_ms + arguments.days * _DAY_MS
    raw = remove_member(_read(arguments.bundle), arguments.organization, issued_ms=context.now_ms, expires_ms=expires)
    write_new(arguments.bundle, raw, force=True)
    _report(context, arguments.bundle, "the next epoch, which all that are left sign anew")


def _sign(context: Context, arguments: argparse.Namespace) -> None:
    ca = OrganizationCa.load(arguments.ca or context.home / CA_DIRECTORY)
    write_new(arguments.bundle, sign_bundle(_read(arguments.bundle), ca), force=True)
    _report(context, arguments.bundle, f"signed by {ca.organization}")


def _verify(context: Context, arguments: argparse.Namespace) -> None:
    own = None if arguments.auditor else own_root(context, arguments.ca)
    bundle = load_bundle(arguments.bundle, now_ms=context.now_ms, own_ca=own)
    context.emit(
        {"bundle": str(arguments.bundle), "valid": True, **describe(bundle, (), context.now_ms)},
        f"{arguments.bundle}: good, {bundle.consortium} epoch {bundle.epoch}, {len(bundle.members)} members, "
        f"until {timestamp(bundle.expires_ms)}",
    )


def _show(context: Context, arguments: argparse.Namespace) -> None:
    raw = _read(arguments.bundle or context.config().bundle)
    bundle, missing = read_bundle(raw), unsigned_members(raw)
    values = describe(bundle, missing, context.now_ms)
    context.emit(values, _text(values, bundle, missing))


def _install(context: Context, arguments: argparse.Namespace) -> None:
    target = context.config().bundle
    raw = _read(arguments.bundle)
    seen = read_bundle(_read(target)).epoch if target.exists() else 0
    bundle = verify_bundle(raw, now_ms=context.now_ms, own_ca=own_root(context, arguments.ca), minimum_epoch=seen)
    write_new(target, raw, force=True)
    context.emit(
        {"bundle": str(target), **describe(bundle, (), context.now_ms)},
        f"{target}: {bundle.consortium} epoch {bundle.epoch} is this node's; it takes effect when the node starts",
    )


_BUNDLE = argument("bundle", type=Path, metavar="BUNDLE", help="the bundle's file")
_CA_FILE = argument("--ca", type=Path, metavar="FILE", help="this organization's root certificate (HOME/ca/ca.pem)")
_DAYS = argument("--days", type=days, default=365, help="how long it is good (%(default)s)")

COMMAND = Command(
    "consortium",
    "make, sign, verify and show the trust bundle of a consortium",
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
                _DAYS,
                argument("--force", action="store_true", help="replace the file if it is there"),
            ),
        ),
        Command(
            "add",
            "make the next epoch, with one more member or one more root of a member",
            _add,
            (_BUNDLE, argument("certificate", type=Path, metavar="CA", help="its root certificate (ca.pem)"), _DAYS),
        ),
        Command(
            "remove",
            "make the next epoch, without one of the members",
            _remove,
            (_BUNDLE, argument("organization", metavar="ORGANIZATION", help="the member that leaves"), _DAYS),
        ),
        Command(
            "sign",
            "sign a bundle with this organization's CA",
            _sign,
            (_BUNDLE, argument("--ca", type=Path, metavar="DIR", help="the CA's directory (HOME/ca)")),
        ),
        Command(
            "verify",
            "check a bundle: signed by all members, not expired, this organization in it",
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
