"""`comity bulk` against a node's control API, with another organization behind it."""

from __future__ import annotations

import io
import json
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
import trio

from comity.client import BulkProgress, Client
from comity.errors import ConfigError, ControlError
from comity_node.bulk.control import BulkControl
from comity_node.cli import bulk_files
from comity_node.cli.bulk_files import Pieces
from comity_node.control.server import ControlServer
from comity_node.control.workers import WorkerPool
from kit.bulk import DATASET, PURPOSE, Pair, Tap, table
from kit.lab import run

Cli = Callable[..., tuple[int, str, str]]


class _Handlers:
    """The bulk calls of a node; nothing else is asked of it here."""

    def __init__(self, control: BulkControl) -> None:
        self._control = control

    def __getattr__(self, name: str) -> Any:
        return getattr(self._control, name, None)


@pytest.fixture
def sockets() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="comity-") as directory:  # pytest's own are too long for a socket
        yield Path(directory)


class Nodes:
    """A pair whose nodes have a control API."""

    def __init__(self, home: Path, sockets: Path, cli: Cli) -> None:
        self.pair, self._sockets, self._cli = Pair(home), sockets, cli

    async def start(self, nursery: trio.Nursery) -> None:
        await self.pair.start(nursery)
        self.addresses = {}
        for party in self.pair.parties.values():
            address = f"unix:{self._sockets}/{party.name}"
            handlers: Any = _Handlers(BulkControl(party.service))
            self.addresses[party.name] = await nursery.start(ControlServer(address, handlers, WorkerPool("x")).run)

    async def cli(self, party: str, *arguments: str | Path) -> tuple[int, str, str]:
        address = self.addresses[party]
        return await trio.to_thread.run_sync(partial(self._cli, "bulk", *arguments, "--control", address))

    @property
    def sending(self) -> tuple[str, ...]:
        return ("--dataset", DATASET, "--to", self.pair.receiver.name, "--purpose", PURPOSE)


def with_nodes(tmp_path: Path, sockets: Path, cli: Cli, test: Callable[[Nodes], Awaitable[None]]) -> None:
    async def main(nursery: trio.Nursery) -> None:
        nodes = Nodes(tmp_path, sockets, cli)
        with trio.fail_after(60):
            await nodes.start(nursery)
            await test(nodes)

    run(main)


def test_a_table_is_sent_listed_exported_and_removed(tmp_path: Path, sockets: Path, cli: Cli) -> None:
    async def test(nodes: Nodes) -> None:
        pair = nodes.pair
        sender, receiver = pair.sender.name, pair.receiver.name
        path = pair.sender.write(2000)
        code, out, err = await nodes.cli(sender, "send", path, *nodes.sending)
        assert code == 0, err
        assert out.startswith("sent 2000 rows, 48")
        assert "preparing the rows" in err
        code, out, _ = await nodes.cli(receiver, "list")
        assert code == 0
        assert sender in out
        assert "done" in out
        code, out, _ = await nodes.cli(receiver, "list", "--json")
        (listed,) = json.loads(out)
        assert (listed["rows"], listed["direction"], listed["state"]) == (2000, "in", "done")
        name = listed["transfer_id"][:12]
        read: dict[str, Callable[[Path], pa.Table]] = {
            ".parquet": pq.read_table,
            ".csv": pyarrow.csv.read_csv,
            ".arrow": lambda path: pa.ipc.open_file(path.read_bytes()).read_all(),
        }
        for suffix, reader in read.items():
            target = tmp_path / f"out{suffix}"
            code, out, err = await nodes.cli(receiver, "export", name, target)
            assert code == 0, err
            assert out == f"{target}: 2000 rows\n"
            assert reader(target) == table(2000)
        code, out, err = await nodes.cli(receiver, "export", name, tmp_path / "out.xlsx")
        assert code == 1
        assert "ends in none of" in err
        code, out, _ = await nodes.cli(receiver, "remove", name)
        assert code == 0
        code, _, err = await nodes.cli(receiver, "export", name, tmp_path / "gone.csv")
        assert code == 1
        assert "has no table here" in err
        assert not (tmp_path / "gone.csv").exists()
        code, _, err = await nodes.cli(receiver, "remove", "00" * 32)
        assert code == 1
        assert "`comity bulk list` shows them" in err

    with_nodes(tmp_path, sockets, cli, test)


def test_a_transfer_that_breaks_off_says_how_to_go_on(tmp_path: Path, sockets: Path, cli: Cli) -> None:
    async def test(nodes: Nodes) -> None:
        pair = nodes.pair
        pair.at_receiver = lambda stream: Tap(stream, change=lambda data: b"\0\0\0\x02\xffX")  # no frame of ours
        code, _, err = await nodes.cli(pair.sender.name, "send", pair.sender.write(500), *nodes.sending)
        assert code == 1
        assert "error: a frame of type 255" in err
        (row,) = await pair.sender.rows()
        name = row.transfer_id.hex()[:16]
        assert f"transfer {name} is open; go on with it: comity bulk resume {name}" in err
        pair.at_receiver = lambda stream: stream
        code, out, err = await nodes.cli(pair.sender.name, "resume", name, "--json")
        assert code == 0, err
        assert json.loads(out)["state"] == "done"
        assert err == ""
        code, out, _ = await nodes.cli(pair.sender.name, "resume", name)
        assert code == 0
        assert out.startswith("sent 500 rows")

    with_nodes(tmp_path, sockets, cli, test)


def test_a_client_that_goes_away_leaves_an_open_transfer(tmp_path: Path, sockets: Path, cli: Cli) -> None:
    async def test(nodes: Nodes) -> None:
        pair = nodes.pair
        held, let_go = trio.Event(), trio.Event()

        class Held(Tap):
            async def send(self, data: bytes) -> None:
                if data[4] == 5:  # the first chunk
                    held.set()
                    await let_go.wait()
                await super().send(data)

        pair.at_sender = lambda stream: Held(stream)
        client = Client(nodes.addresses[pair.sender.name])
        ended = threading.Event()
        path = pair.sender.write(2000)

        def send() -> None:
            try:
                client.send_bulk(path, to_organization=pair.receiver.name, dataset=DATASET, purpose=PURPOSE)
            except (ControlError, ValueError):  # the second from grpc, for a channel that is closed
                ended.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, send)
            await held.wait()
            await trio.to_thread.run_sync(client.close)
        assert ended.is_set()
        while (await pair.sender.service.list())[0].running:  # noqa: ASYNC110  (the node notices by itself)
            await trio.sleep(0.01)
        (row,) = await pair.sender.rows()
        assert row.state == "open"
        pair.at_sender = lambda stream: stream
        assert (await pair.sender.service.resume(row.transfer_id.hex(), print)).state == "done"

    with_nodes(tmp_path, sockets, cli, test)


def test_an_interrupt_says_how_to_go_on(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    reported = [BulkProgress("", "preparing", 5, 0, 10, "")]

    def interrupted(self: Client, path: Path, *, on_progress: Callable[[BulkProgress], None], **rest: Any) -> Any:
        for progress in reported:
            on_progress(progress)
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "send_bulk", interrupted)
    command = ("bulk", "send", "x.csv", "--dataset", "d", "--to", "a.example", "--purpose", "p", "--control", "unix:/x")
    code, _, err = cli(*command)
    assert code == 130
    assert "nothing has to be resumed" in err
    reported.append(BulkProgress("ab" * 32, "sending", 5, 100, 10, ""))
    code, _, err = cli(*command)
    assert code == 130
    assert "comity bulk resume abababababababab" in err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("send", "--dataset", "d", "--to", "a.example", "--purpose", "p"), 2, "name the FILE"),
        (("send", "x.csv", "--dataset", "d", "--to", "a.example", "--purpose", "p", "--kind", "certified"), 2, "FILE"),
        (("send", "x.csv"), 2, "required"),
        (("list", "--control", "unix:/nowhere/at/all"), 1, "comity node run"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(cli: Cli, arguments: tuple[str, ...], code: int, words: str) -> None:
    found, _, err = cli("bulk", *arguments)
    assert found == code
    assert words in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("command", ["", "send", "resume", "list", "export", "remove"])
def test_help_teaches(cli: Cli, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli("bulk", *([command] if command else []), "--help")
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    if command in ("", "send"):
        assert "comity bulk resume ID" in " ".join(out.split())


def test_pieces_are_read_as_a_file() -> None:
    for sizes in ([3, 4, -1], [1] * 12, [100], [-1]):
        file = Pieces(iter([b"abc", b"defghij"]))
        got = b"".join(file.read(size) for size in sizes)
        assert got == b"abcdefghij"
        assert file.read(5) == b""


def test_a_file_that_is_there_is_left_alone_when_the_stream_breaks(tmp_path: Path) -> None:
    target = tmp_path / "out.csv"
    target.write_text("as it was")

    def broken() -> Iterator[bytes]:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table(10).schema) as writer:
            writer.write_table(table(10))
        yield sink.getvalue().to_pybytes()[:-16]
        raise RuntimeError("the node is gone")

    with pytest.raises(RuntimeError, match="the node is gone"):
        bulk_files.write(target, broken())
    assert target.read_text() == "as it was"
    assert list(tmp_path.iterdir()) == [target]


def test_bytes_that_are_no_text_are_named_and_leave_no_csv(tmp_path: Path) -> None:
    sink = io.BytesIO()
    rows = pa.table({"photo": pa.array([b"\xff\x00"], pa.binary())})
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    with pytest.raises(ConfigError, match=r"\.parquet and \.arrow hold every column"):
        bulk_files.write(tmp_path / "rows.csv", iter([sink.getvalue()]))
    assert list(tmp_path.iterdir()) == []
    assert bulk_files.write(tmp_path / "rows.parquet", iter([sink.getvalue()])) == 1
