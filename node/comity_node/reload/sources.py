"""What can be taken in while the node runs: the policy, the trust bundle, the node's certificate.

Each is read and checked off the loop, from bytes that were read once. `take` puts what was found good in force: what
the audit log says of it is on disk before, and the exchange itself is one step of the loop.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from comity.bundle import Anchor, Bundle, load_bundle, verify_bundle
from comity.digest import sha256
from comity.errors import BundleInvalid, ChainInvalid, ComityError, ConfigError, StorageError, TrustError
from comity.signing import PrivateKey
from comity.trust import NodeIdentity, TrustStore, own_root, read_certificates
from comity_node.admission import Gate
from comity_node.admission.archive import remember_policy
from comity_node.config import NodeConfig
from comity_node.policy.engine import Policy
from comity_node.policy.loader import loads_policy
from comity_node.storage import audit, journal
from comity_node.storage.database import Database
from comity_node.strictyaml import read_file

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

#: Where the journal keeps the last epoch that was seen: its number, and the epoch itself.
EPOCH = "bundle.epoch"
ANCHOR = "bundle.anchor"
_META_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Found(Generic[T_co]):
    """What the files hold.

    Attributes:
        content: names exactly what was read, so that the same refusal is noted once.
        value: what was found good; None if it was not.
        error: what is wrong with it.
    """

    content: bytes
    value: T_co | None = None
    error: ComityError | None = None


class Source(Protocol[T]):
    """Something that is read from files and put in force."""

    @property
    def name(self) -> str:
        """What it is, in one word: the audit log's `<name>.changed` and `<name>.refused`."""

    def files(self) -> Sequence[Path]:
        """Return the files to watch."""

    def read(self) -> Found[T]:
        """Read and check; blocks, and changes nothing."""

    async def take(self, value: T) -> str:
        """Put what was read in force; returns what has changed in one line, "" if nothing has.

        Raises:
            ComityError: it was not put in force; what was there stays.
        """


class Reaction:
    """What has to be done after something was put in force; tried again, when it failed, by the next `settle`."""

    def __init__(self, changed: Callable[[], Awaitable[None]]) -> None:
        self._changed, self._is_owed = changed, False

    async def follow(self) -> None:
        """Something was put in force: do it.

        Raises:
            StorageError: it is not done, or not all of it.
        """
        self._is_owed = True
        await self.settle()

    async def settle(self) -> None:
        """Do it if it is still to be done; the errors are those of `follow`."""
        if not self._is_owed:
            return
        try:
            await self._changed()
        except StorageError as error:
            raise StorageError(f"it is in force, but what is under way was not looked at again: {error}") from error
        self._is_owed = False


def check_policy(policy: Policy, config: NodeConfig) -> None:
    """Refuse a policy that speaks for another organization.

    Raises:
        ConfigError: it does.
    """
    if policy.organization != config.organization:
        raise ConfigError(f"is the policy of {policy.organization}", file=str(config.policy), line=1)


class _Kept:
    """What the sources have in common: where the audit log is, and what has to be done after an exchange."""

    def __init__(
        self, config: NodeConfig, gate: Gate, database: Database, changed: Callable[[], Awaitable[None]]
    ) -> None:
        self._config, self._gate, self._database = config, gate, database
        self._reaction = Reaction(changed)

    def _note(
        self, entry: audit.AuditEntry, remember: Callable[[sqlite3.Connection], object] = lambda _: None
    ) -> Callable[[sqlite3.Connection], None]:
        """Return what writes down what is about to be put in force, and what else is to be remembered of it."""
        now_ms = self._gate.now_ms()

        def write(connection: sqlite3.Connection) -> None:
            audit.append(connection, entry, now_ms)
            remember(connection)

        return write


class _Membership(_Kept):
    """A source that says who somebody is: this node, or the other members."""

    def __init__(
        self, config: NodeConfig, identity: NodeIdentity, trust: TrustStore, gate: Gate, database: Database,
        changed: Callable[[], Awaitable[None]],
    ) -> None:  # fmt: skip
        super().__init__(config, gate, database, changed)
        self._identity, self._trust = identity, trust


class PolicySource(_Kept):
    """The policy and the schemas that it names. `changed` is awaited after, and looks again at what is under way."""

    name = "policy"

    def __init__(
        self, config: NodeConfig, gate: Gate, database: Database, changed: Callable[[], Awaitable[None]]
    ) -> None:
        """Put policies in force at `gate`."""
        super().__init__(config, gate, database, changed)
        self._trouble: tuple[Path, ...] = ()

    def files(self) -> Sequence[Path]:
        """Return the policy, the schemas of the one in force, and the file that was wrong last."""
        path = self._config.policy
        schemas = [path.parent / name for name in self._gate.policy.document.files if name]
        return tuple(dict.fromkeys((path, *schemas, *self._trouble)))

    def read(self) -> Found[Policy]:
        """Read the policy as at the start of the node."""
        path, raw = self._config.policy, b""
        try:
            raw = read_file(path)
            policy = loads_policy(raw, file=str(path), base=path.parent)
            check_policy(policy, self._config)
        except ConfigError as error:
            self._trouble = (Path(error.file),) if error.file else ()
            return Found(sha256(raw + str(error).encode()), error=error)
        self._trouble = ()
        return Found(policy.digest, policy)

    async def take(self, value: Policy) -> str:
        """Exchange the policy, and look again at what is under way."""
        gate, old = self._gate, self._gate.policy.digest
        if value.digest == old:
            await self._reaction.settle()
            return ""
        entry = audit.AuditEntry(
            kind="effect",
            action="policy.changed",
            policy=value.digest,
            detail={"old": old.hex(), "new": value.digest.hex()},
        )
        await gate.replace(value, self._note(entry, lambda c: remember_policy(c, value)))
        await self._reaction.follow()
        return f"policy {old.hex()[:12]} -> {value.digest.hex()[:12]}, {len(value.document.rules)} rules"


class BundleSource(_Membership):
    """The trust bundle. `changed` is awaited after, and cuts who is no member any more."""

    name = "bundle"

    def files(self) -> Sequence[Path]:
        """Return the bundle's file."""
        return (self._config.bundle,)

    def read(self) -> Found[Bundle]:
        """Read the bundle: verified, of this consortium, no step back, and this node is a member by it."""
        path, now_ms = self._config.bundle, self._gate.now_ms()
        try:
            bundle = read_verified_bundle(path, self._identity, Anchor.of(self._trust.bundle), now_ms)
        except TrustError as error:
            return Found(sha256(str(error).encode()), error=error)
        return Found(bundle.digest, bundle)

    async def take(self, value: Bundle) -> str:
        """Exchange the bundle, and cut, void and drop what is of those who have left."""
        before = self._trust.bundle
        if value.digest == before.digest:
            await self._reaction.settle()
            return ""
        came = sorted(set(value.members) - set(before.members))
        left = sorted(set(before.members) - set(value.members))
        entry = audit.AuditEntry(
            kind="key",
            action="bundle.changed",
            subject=value.digest,
            detail={"old_epoch": before.epoch, "epoch": value.epoch, "joined": came[:100], "left": left[:100]},
        )
        await self._database.transact(self._note(entry, lambda c: remember_bundle(c, value)))
        self._trust.replace(value)
        await self._reaction.follow()
        named = [f"{', '.join(names)} {verb}" for names, verb in ((came, "joined"), (left, "left")) if names]
        return "; ".join([f"trust bundle epoch {before.epoch} -> {value.epoch}", *named])


class CertificateSource(_Membership):
    """The node's own certificate chain: renewed, of the same key and under the same name.

    `changed` is awaited after, and presents the new chain to the others.
    """

    name = "certificate"

    def files(self) -> Sequence[Path]:
        """Return the chain's file, and the key's: one that has changed is refused."""
        return (self._config.chain, self._config.key)

    def read(self) -> Found[tuple[bytes, ...]]:
        """Read the chain: this node's, of its key, and good now."""
        config, identity, pem = self._config, self._identity, b""
        try:
            if PrivateKey.load(config.key).public_key != identity.key.public_key:
                raise ChainInvalid(f"{config.key} is another key: restart the node to have it use that one")
            pem = read_file(config.chain)
            chain = self._check(pem)
        except ComityError as error:
            return Found(sha256(pem + str(error).encode()), error=error)
        return Found(sha256(chain[0]), chain)

    def _check(self, pem: bytes) -> tuple[bytes, ...]:
        try:
            renewed = NodeIdentity.of(self._identity.key, read_certificates(pem))
            if renewed.node != self._identity.node:
                raise ChainInvalid(f"it is the certificate of {renewed.node}; this node is {self._identity.node}")
            self._trust.verify_chain(renewed.chain, self._gate.now_ms())
        except TrustError as error:
            raise ChainInvalid(f"{self._config.chain}: {error}") from error
        return renewed.chain

    async def take(self, value: tuple[bytes, ...]) -> str:
        """Present another chain from now on."""
        if value == self._identity.chain:
            await self._reaction.settle()
            return ""
        _, until_ms = NodeIdentity.of(self._identity.key, value).valid_ms
        entry = audit.AuditEntry(
            kind="key", action="certificate.renewed", subject=sha256(value[0]), detail={"until_ms": until_ms}
        )
        await self._database.transact(self._note(entry))
        self._identity.renew(value)
        await self._reaction.follow()
        return f"certificate {sha256(value[0]).hex()[:12]}"


def read_verified_bundle(path: Path, identity: NodeIdentity, anchor: Anchor, now_ms: int) -> Bundle:
    """Read a trust bundle by which the node itself is a member.

    Raises:
        BundleInvalid: it does not verify, goes back behind `anchor`, or this node is no member by it.
    """
    chain = identity.chain
    own_ca = chain[1] if len(chain) > 1 else None
    bundle = load_bundle(path, now_ms=now_ms, own_ca=own_ca, minimum_epoch=anchor.epoch, anchor=anchor)
    if anchor.consortium and bundle.consortium != anchor.consortium:
        raise BundleInvalid(f"{path}: it is of {bundle.consortium!r}, and this node belongs to {anchor.consortium!r}")
    if anchor.digest and bundle.epoch == anchor.epoch and bundle.digest != anchor.digest:
        raise BundleInvalid(f"{path}: it is another bundle of epoch {bundle.epoch} than the one that was seen")
    try:
        TrustStore(bundle).verify_chain(chain, now_ms)
        if own_ca is None:  # its root is known only now, and has to have signed where the history begins, too
            verify_bundle(bundle.raw, now_ms=now_ms, own_ca=own_root(chain, bundle), anchor=anchor)
    except BundleInvalid as error:
        raise BundleInvalid(f"{path}: {error}") from error
    except TrustError as error:
        raise BundleInvalid(f"{path}: this node's own certificate does not verify against it: {error}") from error
    return bundle


def remember_bundle(connection: sqlite3.Connection, bundle: Bundle) -> None:
    """Write down the epoch that was seen, so that no restart goes back behind it."""
    journal.raise_number(connection, EPOCH, bundle.epoch)
    anchor = Anchor.of(bundle)
    encoded = anchor.encode()
    if len(encoded) > _META_BYTES:  # without the names of who signed: they only help to say who has signed a fork
        encoded = replace(anchor, signers=frozenset()).encode()
    journal.set_meta(connection, ANCHOR, encoded)


def remembered_anchor(connection: sqlite3.Connection) -> Anchor:
    """Return the last epoch that was seen; epoch 0 if there was none.

    Raises:
        BundleInvalid: what was written down cannot be read.
    """
    number = Anchor(journal.get_number(connection, EPOCH))
    encoded = journal.get_meta(connection, ANCHOR)
    if encoded is None:
        return number
    anchor = Anchor.decode(encoded)
    return anchor if anchor.epoch >= number.epoch else number
