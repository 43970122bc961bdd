"""The launcher, with stand-ins for Flower's programs: what they see, and that none of them stays."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from comity.errors import AgentFailed, ConfigError, DeadlineExceeded, MissingExtra
from comity_node.demo.training import app_directory
from comity_node.flower_processes import FlowerProcesses, app_digest, check_version

#: Answers its health check, and starts a process of its own in a session of its own, as Flower does.
SERVER = """#!{python}
import json, os, subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
port = int(sys.argv[sys.argv.index("--port") + 1])
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
with open(os.environ["FLWR_HOME"] + "/seen.json", "w") as file:
    json.dump({{"arguments": sys.argv[1:], "environment": dict(os.environ), "child": child.pid}}, file)
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
    def log_message(self, *_):
        pass
HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
DYING = "#!/bin/sh\necho 'cannot start' ; exit 3\n"
SILENT = "#!/bin/sh\nexec sleep 600\n"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put programs where the launcher looks for Flower's: beside the interpreter."""
    directory = tmp_path / "bin"
    directory.mkdir()
    python = sys.executable
    monkeypatch.setattr(sys, "executable", str(directory / "python"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")

    def write(name: str, text: str) -> None:
        path = directory / name
        path.write_text(text.format(python=python) if "{python}" in text else text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return write


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_processes_see_what_they_need_and_all_of_them_end(
    tmp_path: Path, programs: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    programs("flower-superlink", SERVER)
    programs("flower-supernode", SERVER)
    for name in ("HTTP_PROXY", "https_proxy", "PYTHONDONTWRITEBYTECODE", "A_SECRET"):
        monkeypatch.setenv(name, "x")
    with FlowerProcesses(tmp_path / "flower", deadline_s=20) as flower:
        port = flower.start_superlink(environment={"COMITY_CONTROL": "unix:/a"})
        flower.start_supernode("mercy", port, environment={"COMITY_CONTROL": "unix:/b"}, wait=False)
        flower.wait_healthy()
        flower.check()
        seen = {
            name: json.loads((tmp_path / "flower" / name / "seen.json").read_text())
            for name in ("superlink", "supernode-mercy")
        }
        assert all(is_alive(one["child"]) for one in seen.values())
    assert not any(is_alive(one["child"]) for one in seen.values())
    link, node = (seen[name]["environment"] for name in ("superlink", "supernode-mercy"))
    assert (link["COMITY_CONTROL"], node["COMITY_CONTROL"]) == ("unix:/a", "unix:/b")
    assert link["FLWR_HOME"] != node["FLWR_HOME"]
    assert link["FLWR_TELEMETRY_ENABLED"] == "0"
    assert link["NO_PROXY"].startswith("127.0.0.1")
    assert not {"HTTP_PROXY", "https_proxy", "PYTHONDONTWRITEBYTECODE", "A_SECRET"} & set(link)
    assert "--disable-runtime-dependency-installation" in seen["superlink"]["arguments"]
    assert f"127.0.0.1:{port}" in seen["supernode-mercy"]["arguments"]


def test_a_program_that_dies_is_named_with_its_log(tmp_path: Path, programs: Callable[[str, str], None]) -> None:
    programs("flower-superlink", DYING)
    with FlowerProcesses(tmp_path / "flower", deadline_s=20) as flower:
        with pytest.raises(AgentFailed, match=r"superlink has ended \(3\); see .*superlink.log"):
            flower.start_superlink()
        assert "cannot start" in flower.log("superlink").read_text()


def test_a_program_that_is_never_healthy_is_given_up(tmp_path: Path, programs: Callable[[str, str], None]) -> None:
    programs("flower-superlink", SILENT)
    with FlowerProcesses(tmp_path / "flower", deadline_s=0.2) as flower, pytest.raises(DeadlineExceeded):
        flower.start_superlink()


def test_a_missing_program_names_the_extra(tmp_path: Path, programs: Callable[[str, str], None]) -> None:
    with FlowerProcesses(tmp_path / "flower") as flower, pytest.raises(MissingExtra, match=r"comity\[flower\]"):
        flower.start_superlink()


def test_an_app_needs_a_superlink(tmp_path: Path) -> None:
    with FlowerProcesses(tmp_path / "flower") as flower, pytest.raises(ConfigError, match="SuperLink"):
        flower.run_app(app_directory(), {}, timeout_s=1)


def test_a_run_that_flower_refuses_says_why(tmp_path: Path, programs: Callable[[str, str], None]) -> None:
    programs("flower-superlink", SERVER)
    programs("flwr", "#!/bin/sh\necho 'no such key' ; exit 1\n")
    with FlowerProcesses(tmp_path / "flower", deadline_s=20) as flower:
        flower.start_superlink()
        with pytest.raises(AgentFailed, match="no such key"):
            flower.run_app(app_directory(), {"rounds": 3}, timeout_s=20)


@pytest.mark.parametrize("version", ["1.40.2", "1.42.0", "2.0.0"])
def test_other_versions_of_flower_are_refused(version: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(metadata, "version", lambda _: version)
    with pytest.raises(ConfigError, match=version.replace(".", r"\.")):
        FlowerProcesses(tmp_path)


def test_no_flower_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(_: str) -> str:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(MissingExtra):
        check_version()


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
def test_a_bundle_has_one_digest_until_the_app_changes(tmp_path: Path) -> None:
    app = tmp_path / "flower-tabular"
    shutil.copytree(app_directory(), app)
    before = app_digest(app)
    assert before == app_digest(app_directory()) == app_digest(app)
    (app / "flower_tabular" / "task.py").write_text("import os\n")
    assert app_digest(app) != before
    with pytest.raises(ConfigError, match="nowhere"):
        app_digest(tmp_path / "nowhere")


def test_only_marked_processes_are_ended(tmp_path: Path) -> None:
    import subprocess

    other = subprocess.Popen(["sleep", "600"])
    try:
        FlowerProcesses(tmp_path / "flower").close()
        assert is_alive(other.pid)
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
