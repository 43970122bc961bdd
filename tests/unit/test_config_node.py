"""node.yaml: what is read, and what is refused with file, line and column."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest

from comity.errors import ConfigError
from comity_node import config, telemetry
from comity_node.templates import node_yaml

PEER = "12D3KooWAknGNDQ2V3oeErGz85jQqiRChGNxNrtBavixqnA4PsXE"

GOOD = f"""\
version: 1
organization: mercy.example
node: n1
paths: {{key: secret/node.key, database: /var/lib/comity/node.db}}
listen: [/ip4/127.0.0.1/tcp/0, "/ip6/::1/tcp/4101"]
bootstrap:
  - /ip4/10.0.0.1/tcp/4101/p2p/{PEER}
control: {{address: "unix:run/c.sock"}}
datasets:
  tumours: {{schema: schemas/t.json, private: data/t.parquet}}
  only-review: {{schema: schemas/t.json}}
limits: {{peers: 8, workers: 4}}
log: {{level: debug, format: json}}
trust: {{certificates_within: 7d}}
prices: {{answer: 0.5, run-code: 2}}
"""


def write(directory: Path, text: str) -> Path:
    path = directory / "node.yaml"
    path.write_text(text)
    return path


def test_a_whole_file(tmp_path: Path) -> None:
    loaded = config.load(write(tmp_path, GOOD))
    assert loaded.home == tmp_path
    assert str(loaded.node) == "spiffe://mercy.example/node/n1"
    assert loaded.key == tmp_path / "secret/node.key"
    assert loaded.chain == tmp_path / "keys/node.chain.pem"
    assert loaded.database == Path("/var/lib/comity/node.db")
    assert loaded.network.listen[1] == "/ip6/::1/tcp/4101"
    assert loaded.network.bootstrap == (f"/ip4/10.0.0.1/tcp/4101/p2p/{PEER}",)
    assert loaded.control == config.ControlConfig(f"unix:{tmp_path}/run/c.sock")
    assert loaded.datasets["tumours"].private == tmp_path / "data/t.parquet"
    assert loaded.datasets["only-review"].private is None
    assert loaded.limits == config.LimitsConfig(peers=8, workers=4)
    assert loaded.log == config.LogConfig("debug", "json")
    assert loaded.certificates_within_ms == 7 * 86_400_000
    assert loaded.prices == {"answer": 0.5, "run-code": 2.0}


def test_what_init_writes_is_valid_and_says_the_defaults(tmp_path: Path) -> None:
    text = node_yaml("mercy.example", "n1", listen=["/ip4/0.0.0.0/tcp/4101"])
    loaded = config.load(write(tmp_path, text))
    minimal = 'version: 1\norganization: mercy.example\nnode: n1\nlisten: ["/ip4/0.0.0.0/tcp/4101"]\n'
    assert loaded == config.load(write(tmp_path, minimal))
    uncommented = text.replace("# paths:", "paths:")
    for key in ("limits", "relay", "discovery", "transport", "metrics"):
        uncommented = uncommented.replace(f"# {key}:", f"{key}:")
    assert uncommented.count("\n# ") < text.count("\n# ")
    for key in ("key", "chain", "bundle", "policy", "database"):
        uncommented = uncommented.replace(f"#   {key}: ", f"    {key}: ")
    assert loaded == config.load(write(tmp_path, uncommented))


def test_what_a_program_writes_for_its_node(tmp_path: Path) -> None:
    paths = {"schema": "data/schema.json", "private": "data/private.parquet"}
    text = node_yaml(
        "mercy.example",
        "n1",
        listen=["/ip4/127.0.0.1/tcp/0"],
        bootstrap=[f"/ip4/127.0.0.1/tcp/4101/p2p/{PEER}"],
        control="unix:/run/comity/c.sock",
        datasets={"tumours": paths},
    )
    loaded = config.load(write(tmp_path, text))
    assert loaded.control.address == "unix:/run/comity/c.sock"
    assert loaded.datasets["tumours"].private == tmp_path / "data/private.parquet"


@pytest.mark.parametrize("name", ["null", "true", "123", "1e5"])
def test_names_that_yaml_could_take_for_something_else(tmp_path: Path, name: str) -> None:
    loaded = config.load(write(tmp_path, node_yaml(name, name, listen=["/ip4/0.0.0.0/tcp/1"])))
    assert loaded.organization == name
    assert loaded.node.name == name


@pytest.mark.invariant("S3")
@pytest.mark.parametrize(
    ("old", "new", "place", "says"),
    [
        ("version: 1", "version: 2", "1:10", "must be from 1 to 1"),
        ("node: n1", "nodes: n1", "3:1", 'did you mean "node"'),
        ("node: n1", "node: N1", "3:7", "is not a name"),
        ("mercy.example\n", "Mercy\n", "2:15", "no organization name"),
        ("/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0", "5:10", "/ip4/HOST/tcp/PORT"),
        ("/ip4/127.0.0.1/tcp/0", "/ip4/300.0.0.1/tcp/0", "5:10", "no IPv4 address"),
        ("/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/tcp/70000", "5:10", "no port"),
        (f"/p2p/{PEER}", "", "7:5", "/p2p/PEERID"),
        (PEER, "12D3KooW", "7:5", "PeerId"),
        ('"unix:run/c.sock"', '"127.0.0.1:80"', "8:20", "needs tls"),
        ("tumours:", "Tumours:", "10:3", "no dataset name"),
        ("{schema: schemas/t.json}", "{}", "11:16", '"schema" is missing'),
        ("peers: 8", "peers: no", "12:17", "a whole number"),
        ("peers: 8", "peer: 8", "12:10", 'did you mean "peers"'),
        ("workers: 4", "workers: 0", "12:29", "must be from 1"),
        ("{answer: 0.5", "{Answer: 0.5", "15:10", "is no skill's name"),
        ("{answer: 0.5", "{answer: -1", "15:18", ""),
        ("level: debug", "level: loud", "13:14", "unknown log level"),
        ("within: 7d", "within: 30m", "14:30", "must be from 1h"),
        ("within: 7d", "within: never", "14:30", "a duration such as"),
        ("certificates_within", "certificate_within", "14:9", "certificates_within"),
        ("listen: [", "listen: [[", "", "node.yaml:"),
    ],
)
def test_what_is_wrong_is_refused_with_its_place(tmp_path: Path, old: str, new: str, place: str, says: str) -> None:
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    assert str(caught.value).startswith(f"{path}:{place}")
    assert says in str(caught.value)


def test_tcp_control_with_tls(tmp_path: Path) -> None:
    tls = 'control: {address: "10.0.0.7:7443", tls: {certificate: c.pem, key: c.key, client_ca: ca.pem}}'
    loaded = config.load(write(tmp_path, GOOD.replace('control: {address: "unix:run/c.sock"}', tls)))
    assert loaded.control.tls == config.TlsFiles(tmp_path / "c.pem", tmp_path / "c.key", tmp_path / "ca.pem")
    with pytest.raises(ConfigError, match="takes no tls"):
        config.load(
            write(
                tmp_path, GOOD.replace('control: {address: "unix:run/c.sock"}', tls.replace("10.0.0.7:7443", "unix:s"))
            )
        )


@pytest.fixture
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], level = before
    root.setLevel(level)


@pytest.mark.usefixtures("restored_logging")
def test_json_log_lines() -> None:
    stream = StringIO()
    telemetry.configure("info", "json", stream)
    logger = logging.getLogger("comity_node.test")
    logger.debug("not this")
    logger.warning("peer %s is gone", "stlukes.example", extra={"peer": "12D3"})
    logging.getLogger("libp2p.host").info("not this either")
    try:
        raise ValueError("why")
    except ValueError:
        logger.exception("failed")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["level"], first["message"], first["peer"]) == ("warning", "peer stlukes.example is gone", "12D3")
    assert first["time"].endswith("Z")
    assert "ValueError: why" in second["exception"]


@pytest.mark.usefixtures("restored_logging")
def test_a_peers_text_cannot_forge_a_log_line() -> None:
    stream = StringIO()
    telemetry.configure("info", "text", stream)
    logging.getLogger("comity_node.test").info("refused: %s", "x\n2030-01-01T00:00:00Z info comity: all is well")
    assert len(stream.getvalue().splitlines()) == 1


def traces(text: str) -> str:
    return GOOD + f"\ntelemetry: {{traces: {{{text}}}}}\n"


def test_traces_are_off_unless_node_yaml_says_where_to(tmp_path: Path) -> None:
    assert config.load(write(tmp_path, GOOD)).traces is None
    assert config.load(write(tmp_path, GOOD + "\ntelemetry: {}\n")).traces is None
    said = config.load(write(tmp_path, traces('endpoint: "http://127.0.0.1:4318"'))).traces
    assert said is not None
    assert (said.endpoint, said.service, said.sample) == ("http://127.0.0.1:4318/v1/traces", "comity", 1.0)
    text = 'endpoint: "https://otel.mercy.example/x", service: comity-mercy, sample: 0.25'
    said = config.load(write(tmp_path, traces(text))).traces
    assert said is not None
    assert (said.endpoint, said.service, said.sample) == ("https://otel.mercy.example/x", "comity-mercy", 0.25)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("service: a", "endpoint"),
        ('endpoint: "otel.example"', "no URL"),
        ('endpoint: "ftp://otel.example/x"', "no URL"),
        ('endpoint: "https://otel.example:99999/x"', "no URL"),
        ('endpoint: "https://otel.example/x?key=1"', "no URL"),
        ('endpoint: "https://me:secret@otel.example/x"', "ends up in logs"),
        ('endpoint: "http://otel.example/x"', "take https"),
        ('endpoint: "http://10.0.0.7:4318/x"', "take https"),
        ('endpoint: "https://otel.example", sample: 1.5', "sample"),
        ('endpoint: "https://otel.example", service: "a b"', "service name"),
        ('endpoint: "https://otel.example", insecure: true', "insecure"),
    ],
)
def test_a_collector_that_cannot_be_is_refused(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        config.load(write(tmp_path, traces(text)))
