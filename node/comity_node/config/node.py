"""`node.yaml`: what one node is, where its files lie and how it is reached.

Read strictly: an unknown key, a value of another type or a path that cannot work is a `ConfigError` with file, line and
column, before anything is opened. Paths are relative to the directory of `node.yaml` (the node's home).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from types import MappingProxyType
from typing import Final
from urllib.parse import urlsplit

from comity.errors import InvalidName
from comity.ids import SpiffeId
from comity_node import strictyaml
from comity_node.config import network
from comity_node.config.network import NetworkConfig, read_network
from comity_node.strictyaml import Node, Section

FILE_NAME: Final = "node.yaml"
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
LOG_FORMATS: Final = ("text", "json")
_HIGHEST_PRICE: Final = 1_000_000.0
#: In a directory of its own, which the node makes for its owner alone.
DEFAULT_CONTROL: Final = "unix:run/control.sock"

#: How long who is proven to have lied is asked for nothing new: no review, no agreement, no task.
_SUSPENSION_MS: Final = 30 * 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Files of mutual TLS, PEM: the server's chain and key, and the CA that its clients' certificates come from."""

    certificate: Path
    key: Path
    client_ca: Path


@dataclass(frozen=True, slots=True)
class ControlConfig:
    """Where the node's own organization reaches it: `unix:/path`, or `host:port` with `tls`."""

    address: str
    tls: TlsFiles | None = None


@dataclass(frozen=True, slots=True)
class DatasetConfig:
    """A dataset as this node holds it.

    Attributes:
        name: as in the policy and in agreements.
        schema: JSON file of the fields that all organizations agreed on.
        private: Parquet file of own rows, which synthetic ones must keep away from; None if there are none.
    """

    name: str
    schema: Path
    private: Path | None = None


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """What peers and workers may cost this node.

    Attributes:
        peers: peers that are known at a time.
        requests_per_peer: requests of one peer that are worked on at a time; then it is told to come back.
        messages_per_second: messages of one organization that are handled, in the long run; then it is told so.
        workers: workers that are connected at a time.
    """

    peers: int = 256
    requests_per_peer: int = 128
    messages_per_second: int = 5_000
    workers: int = 256


@dataclass(frozen=True, slots=True)
class LogConfig:
    """Least level that is logged, and its form: `text` for people, `json` (one object a line) for machines."""

    level: str = "info"
    format: str = "text"


@dataclass(frozen=True, slots=True)
class TracesConfig:
    """Where spans of tasks go (`comity_node.tracing`).

    Attributes:
        endpoint: URL of the organization's own OpenTelemetry collector that takes spans.
        service: the `service.name` of the spans.
        sample: the share of tasks that are recorded, 0 to 1.
    """

    endpoint: str
    service: str = "comity"
    sample: float = 1.0


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """A checked `node.yaml`. All paths are absolute.

    `suspension_ms`: for how long an organization that is proven to have lied is asked for nothing new.

    `prices`: what this organization asks of others for a row of a skill, in the unit that the consortium has agreed on.
    `certificates_within_ms`: how long ago a peer's certificate may have been issued (`comity.trust`, step 7); None: as
    long as it is valid.
    """

    home: Path
    organization: str
    node: SpiffeId
    key: Path
    chain: Path
    bundle: Path
    policy: Path
    database: Path
    network: NetworkConfig
    control: ControlConfig
    datasets: Mapping[str, DatasetConfig]
    limits: LimitsConfig
    log: LogConfig
    certificates_within_ms: int | None = None
    suspension_ms: int = _SUSPENSION_MS
    prices: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    traces: TracesConfig | None = None


def load(path: Path) -> NodeConfig:
    """Read a `node.yaml`.

    Raises:
        ConfigError: the file is missing, malformed or says something that cannot be; carries file, line and column.
    """
    home = path.absolute().parent
    top = strictyaml.load(path).mapping(
        "version", "organization", "node", "paths", "control", "datasets", "limits", "log", "trust", "prices",
        "telemetry",
        *network.KEYS,
    )  # fmt: skip
    top.required("version").integer(1, 1)
    organization = top.required("organization").organization()
    paths = top.section("paths", "key", "chain", "bundle", "policy", "database")
    return NodeConfig(
        home=home,
        organization=organization,
        node=_node_name(top, organization),
        key=_path(paths, "key", home, "keys/node.key"),
        chain=_path(paths, "chain", home, "keys/node.chain.pem"),
        bundle=_path(paths, "bundle", home, "consortium.json"),
        policy=_path(paths, "policy", home, "policy.yaml"),
        database=_path(paths, "database", home, "node.db"),
        network=read_network(top),
        control=_control(top, home),
        datasets=_datasets(top.optional("datasets"), home),
        limits=_limits(top.section("limits", "peers", "requests_per_peer", "messages_per_second", "workers")),
        log=_log(top.section("log", "level", "format")),
        certificates_within_ms=_certificates_within(trust := top.section("trust", "certificates_within", "suspension")),
        suspension_ms=_suspension(trust),
        prices=_prices(top.optional("prices")),
        traces=_traces(top.section("telemetry", "traces").optional("traces")),
    )


def _node_name(top: Section, organization: str) -> SpiffeId:
    node = top.required("node")
    try:
        return SpiffeId(organization, "node", node.string())
    except InvalidName as error:
        node.fail(str(error))


def _path(section: Section, key: str, home: Path, default: str) -> Path:
    node = section.optional(key)
    return home / default if node is None else node.file_path(home)


def _control(top: Section, home: Path) -> ControlConfig:
    section = top.section("control", "address", "tls")
    node = section.optional("address")
    address = DEFAULT_CONTROL if node is None else node.string()
    tls = _tls(section.optional("tls"), home)
    if address.startswith("unix:"):
        if tls is not None:
            section.required("tls").fail("a unix socket takes no tls: the permissions of its directory guard it")
        return ControlConfig(f"unix:{home / address.removeprefix('unix:')}")
    if tls is None:
        (node or top.node).fail(
            f"{address!r} is no unix:PATH, and a TCP address needs tls: certificate, key and client_ca"
        )
    return ControlConfig(address, tls)


def _tls(node: Node | None, home: Path) -> TlsFiles | None:
    if node is None:
        return None
    files = node.mapping("certificate", "key", "client_ca")
    return TlsFiles(*(files.required(key).file_path(home) for key in ("certificate", "key", "client_ca")))


def _datasets(node: Node | None, home: Path) -> Mapping[str, DatasetConfig]:
    datasets: dict[str, DatasetConfig] = {}
    for name, mark, value in () if node is None or node.is_empty else node.table():
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", name):
            mark.fail(f"{name!r} is no dataset name: lower-case letters, digits, '.', '_' and '-', at most 64")
        section = value.mapping("schema", "private")
        private = section.optional("private")
        datasets[name] = DatasetConfig(
            name=name,
            schema=section.required("schema").file_path(home),
            private=None if private is None else private.file_path(home),
        )
    return MappingProxyType(datasets)


def _prices(node: Node | None) -> Mapping[str, float]:
    prices: dict[str, float] = {}
    for skill, mark, value in () if node is None or node.is_empty else node.table():
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", skill):
            mark.fail(f"{skill!r} is no skill's name: lower-case letters, digits, '.', '_' and '-', at most 64")
        prices[skill] = value.number(0.0, _HIGHEST_PRICE)
    return MappingProxyType(prices)


def _traces(node: Node | None) -> TracesConfig | None:
    if node is None:
        return None
    section = node.mapping("endpoint", "service", "sample")
    default = TracesConfig(_endpoint(section.required("endpoint")))
    service, sample = section.optional("service"), section.optional("sample")
    name = default.service if service is None else service.string()
    if service is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        service.fail(f"{name!r} is no service name: letters, digits, '.', '_' and '-', at most 64")
    return TracesConfig(
        endpoint=default.endpoint,
        service=name,
        sample=default.sample if sample is None else sample.number(0.0, 1.0),
    )


def _endpoint(node: Node) -> str:
    """Return a collector's URL: with TLS, but for one on this machine."""
    text = node.string()
    try:
        url = urlsplit(text)
        host, port = url.hostname or "", url.port
    except ValueError as error:
        node.fail(f"{text!r} is no URL: {error}")
    if url.scheme not in ("http", "https") or not host or url.query or url.fragment or port == 0:
        node.fail(f"{text!r} is no URL of a collector, such as https://collector.example:4318/v1/traces")
    if url.username is not None or url.password is not None:
        node.fail("a URL with a password in it ends up in logs: leave the name and the password out")
    if url.scheme == "http" and host != "localhost" and not _is_loopback(host):
        node.fail(f"spans to {host} go over a network: take https://")
    return text if url.path not in ("", "/") else f"{url.scheme}://{url.netloc}/v1/traces"


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _limits(section: Section) -> LimitsConfig:
    default = LimitsConfig()
    return LimitsConfig(
        peers=section.integer("peers", default.peers, 1, 10_000),
        requests_per_peer=section.integer("requests_per_peer", default.requests_per_peer, 1, 10_000),
        messages_per_second=section.integer("messages_per_second", default.messages_per_second, 1, 1_000_000),
        workers=section.integer("workers", default.workers, 1, 10_000),
    )


def _certificates_within(section: Section) -> int | None:
    node = section.optional("certificates_within")
    return None if node is None else node.duration_ms(3_600_000)


def _suspension(section: Section) -> int:
    node = section.optional("suspension")
    return _SUSPENSION_MS if node is None else node.duration_ms(3_600_000)


def _log(section: Section) -> LogConfig:
    default = LogConfig()
    level, form = section.optional("level"), section.optional("format")
    return LogConfig(
        level=default.level if level is None else level.choice(LOG_LEVELS, "log level"),
        format=default.format if form is None else form.choice(LOG_FORMATS, "log format"),
    )
