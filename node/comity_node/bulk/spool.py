"""The spool: where tables lie on their way out, on their way in, and when they are there.

    out/<root>.arrow, out/<root>.leaves      to be sent; the name is the content's
    in/<transfer>.part, in/<transfer>.leaves  what has come so far
    inbox/<transfer>.arrow                    complete and checked

Directories are 0700 and files 0600, opened without following links. Names are digests that this node computed: nothing
that a peer says becomes a part of a path. Everything here blocks; call it in a thread.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from comity.errors import ConfigError, StorageError, StorageFull, TransferFailed
from comity.merkle import leaf_hash, root_of
from comity_node.protocol.bulk import LEAF_BYTES
from comity_node.protocol.bulk_manifest import Geometry

_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NAMES: Final = {"out": (".arrow", ".leaves"), "in": (".part", ".leaves"), "inbox": (".arrow",)}


@contextmanager
def _disk(what: str) -> Iterator[None]:
    """Turn the disk's errors into ours."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull(f"{what}: the disk is full") from error
        raise StorageError(f"{what}: {error.strerror or error}") from error


@dataclass(frozen=True, slots=True)
class Spooled:
    """A file that is ready to be sent: head and leaves of its tree, and how it is cut."""

    root: bytes
    leaves: bytes
    geometry: Geometry


class Spool:
    """The directories of one node."""

    def __init__(self, home: Path, *, keep_free_bytes: int = 0) -> None:
        """Use `home`; `prepare` makes it.

        Args:
            home: the spool's directory.
            keep_free_bytes: what `check_room` leaves free on its disk.
        """
        self.home = home
        self._keep_free = keep_free_bytes

    def prepare(self) -> None:
        """Make the directories, for their owner alone.

        Raises:
            StorageError: they cannot be made, or one of them is a link.
        """
        with _disk(f"cannot make the spool {self.home}"):
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            for directory in (self.home, *(self.home / name for name in _NAMES)):
                directory.mkdir(mode=0o700, exist_ok=True)
                if directory.is_symlink():
                    raise StorageError(f"{directory} is a link; the spool needs a directory of its own")
                directory.chmod(0o700)

    def check_room(self, more_bytes: int) -> None:
        """Refuse what the disk has no room for.

        Raises:
            StorageFull: less than `keep_free_bytes` would be left.
        """
        with _disk(str(self.home)):
            found = os.statvfs(self.home)
        if found.f_bavail * found.f_frsize < more_bytes + self._keep_free:
            raise StorageFull(f"the disk of {self.home} has no room for {more_bytes} bytes more")

    # Out.

    def writer(self, chunk_bytes: int, max_bytes: int) -> SpoolWriter:
        """Begin a file to be sent."""
        path = self.home / "out" / f"new-{secrets.token_hex(8)}"
        with _disk(f"cannot write {path}"):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600)
        return SpoolWriter(self, path, descriptor, chunk_bytes, max_bytes)

    def outgoing(self, root: bytes, geometry: Geometry) -> tuple[int, bytes]:
        """Open a file to be sent; returns its descriptor and the leaves. The caller closes the descriptor.

        Raises:
            TransferFailed: it is not there any more.
            StorageError: it cannot be read, or is not as it was.
        """
        path = self._path("out", root, ".arrow")
        with _disk(f"cannot read {path}"):
            try:
                leaves = self._path("out", root, ".leaves").read_bytes()
                descriptor = os.open(path, os.O_RDONLY | _FLAGS)
            except FileNotFoundError as error:
                raise TransferFailed("the spooled file is gone; send the table again") from error
        if os.fstat(descriptor).st_size != geometry.length or root_of(split_leaves(leaves)) != root:
            os.close(descriptor)
            raise StorageError(f"{path} is not the file that was spooled; send the table again")
        return descriptor, leaves

    def drop_outgoing(self, root: bytes) -> None:
        """Delete a file that nobody waits for any more."""
        self._drop("out", root)

    # In.

    def part(self, transfer_id: bytes, geometry: Geometry) -> PartFile:
        """Open what has come of a transfer so far, or begin it.

        Raises:
            StorageError: it cannot be opened.
        """
        path = self._path("in", transfer_id, ".part")
        with _disk(f"cannot write {path}"):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)
        return PartFile(path, descriptor, geometry)

    def leaves(self, transfer_id: bytes, root: bytes) -> bytes:
        """Return the leaves of a transfer that is coming in; empty if they are not there, or not those of `root`."""
        path = self._path("in", transfer_id, ".leaves")
        try:
            leaves = path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror}") from error
        fits = leaves and len(leaves) % LEAF_BYTES == 0 and root_of(split_leaves(leaves)) == root
        return leaves if fits else b""

    def keep_leaves(self, transfer_id: bytes, leaves: bytes) -> None:
        """Keep the leaves of a transfer that is coming in, durably."""
        self._write_whole(self._path("in", transfer_id, ".leaves"), leaves)

    def promote(self, transfer_id: bytes) -> None:
        """Move a complete file into the inbox, durably; it may be there already."""
        source, target = self._path("in", transfer_id, ".part"), self._path("inbox", transfer_id, ".arrow")
        with _disk(f"cannot move {source} into the inbox"):
            with suppress(FileNotFoundError):
                os.replace(source, target)
            self._sync_directory("inbox")
            self._sync_directory("in")
            if not target.is_file():
                raise StorageError(f"{target} is gone")

    def demote(self, transfer_id: bytes) -> None:
        """Take a file back out of the inbox, where it was not journaled: a crash came between the two."""
        source, target = self._path("inbox", transfer_id, ".arrow"), self._path("in", transfer_id, ".part")
        with _disk(f"cannot move {source} out of the inbox"), suppress(FileNotFoundError):
            os.replace(source, target)

    def received(self, transfer_id: bytes) -> int:
        """Open a file of the inbox to read it; returns its descriptor, which the caller closes.

        Raises:
            StorageError: it is not there.
        """
        path = self._path("inbox", transfer_id, ".arrow")
        with _disk(f"cannot read {path}"):
            return os.open(path, os.O_RDONLY | _FLAGS)

    def read_at(self, descriptor: int, size: int, offset: int) -> bytes:
        """Return bytes of a file that is open, fewer only at its end."""
        with _disk(f"cannot read from {self.home}"):
            return os.pread(descriptor, size, offset)

    def find_received(self, path: Path) -> bytes | None:
        """Return which transfer's table in the inbox `path` leads to, over links of any sort; None if it leads to none.

        Raises:
            ConfigError: it leads to another file of the spool, or cannot be looked at.
        """
        try:
            found, home, real = path.stat(), self.home.resolve(), path.resolve()
            inbox = [real] if real.parent == home / "inbox" else []
            if not inbox and found.st_nlink > 1:
                inbox = [each for each in (home / "inbox").iterdir() if os.path.samestat(each.lstat(), found)]
        except (FileNotFoundError, ValueError):  # ValueError: a name with a zero byte
            return None
        except OSError as error:
            raise ConfigError(f"cannot be read: {error.strerror or error}", file=str(path)) from error
        if inbox:
            return bytes.fromhex(inbox[0].stem)
        if real.is_relative_to(home):
            raise ConfigError("is a file of the node's spool, and no table to send", file=str(path))
        return None

    def forget_part(self, transfer_id: bytes) -> None:
        """Delete what is left in `in` of a transfer whose file is in the inbox and journaled."""
        self._drop("in", transfer_id)

    def drop_incoming(self, transfer_id: bytes) -> None:
        """Delete what has come of a transfer, and its file in the inbox."""
        self._drop("in", transfer_id)
        self._drop("inbox", transfer_id)

    def sweep(self, outgoing: set[bytes], incoming: set[bytes], inbox: set[bytes]) -> int:
        """Delete every file that is not one of these (roots, ids, ids); returns how many. At the start only."""
        gone = 0
        for name, wanted in (("out", outgoing), ("in", incoming), ("inbox", inbox)):
            known = {f"{key.hex()}{suffix}" for key in wanted for suffix in _NAMES[name]}
            with _disk(f"cannot tidy {self.home / name}"):
                for path in list((self.home / name).iterdir()):
                    if path.name not in known:
                        path.unlink()
                        gone += 1
                self._sync_directory(name)
        return gone

    def keep(self, scratch: Path, root: bytes, leaves: bytes) -> None:
        """Give a finished file its name, durably; one that is there already is the same."""
        self._write_whole(self._path("out", root, ".leaves"), leaves)
        with _disk(f"cannot keep {scratch}"):
            os.replace(scratch, self._path("out", root, ".arrow"))
            self._sync_directory("out")

    def _path(self, directory: str, key: bytes, suffix: str) -> Path:
        return self.home / directory / f"{key.hex()}{suffix}"

    def _drop(self, directory: str, key: bytes) -> None:
        with _disk(f"cannot delete from {self.home / directory}"):
            for suffix in _NAMES[directory]:
                self._path(directory, key, suffix).unlink(missing_ok=True)
            self._sync_directory(directory)

    def _sync_directory(self, name: str) -> None:
        descriptor = os.open(self.home / name, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _write_whole(self, path: Path, data: bytes) -> None:
        scratch = path.with_name(f"{path.name}.new")
        with _disk(f"cannot write {path}"):
            descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _FLAGS, 0o600)
            try:
                _write_all(descriptor, data)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(scratch, path)


class SpoolWriter:
    """A file that is being written: cut into chunks, each hashed on its way to the disk. A file object for pyarrow."""

    def __init__(self, spool: Spool, path: Path, descriptor: int, chunk_bytes: int, max_bytes: int) -> None:
        self._spool, self._path, self._descriptor = spool, path, descriptor
        self._chunk_bytes, self._max = chunk_bytes, max_bytes
        self._chunk = bytearray(chunk_bytes)
        self._filled = 0
        self._leaves = bytearray()
        self.length = 0

    @property
    def closed(self) -> bool:
        """Whether it takes no more bytes."""
        return self._descriptor < 0

    def tell(self) -> int:
        """Bytes so far."""
        return self.length

    def flush(self) -> None:
        """Do nothing: `finish` brings all to the disk."""

    def write(self, data: bytes) -> int:
        """Take bytes.

        Raises:
            StorageFull: the file would be larger than it may, or the disk is full.
        """
        view = memoryview(data).cast("B")
        if self.length + len(view) > self._max:
            raise StorageFull(f"the table has more than {self._max} bytes; send it in parts")
        self.length += len(view)
        taken = len(view)
        while view:
            count = min(len(view), self._chunk_bytes - self._filled)
            self._chunk[self._filled : self._filled + count] = view[:count]
            self._filled += count
            view = view[count:]
            if self._filled == self._chunk_bytes:
                self._flush_chunk()
        return taken

    def finish(self) -> Spooled:
        """Bring all to the disk and give the file its name."""
        self._flush_chunk()
        with _disk(f"cannot write {self._path}"):
            os.fsync(self._descriptor)
        self._close()
        leaves = bytes(self._leaves)
        root = root_of(split_leaves(leaves))
        self._spool.keep(self._path, root, leaves)
        return Spooled(root, leaves, Geometry(self.length, self._chunk_bytes))

    def discard(self) -> None:
        """Give up; no effect on a file that is finished."""
        self._close()
        self._path.unlink(missing_ok=True)

    def _flush_chunk(self) -> None:
        if self._filled:
            with memoryview(self._chunk)[: self._filled] as chunk, _disk(f"cannot write {self._path}"):
                self._leaves += leaf_hash(chunk)
                _write_all(self._descriptor, chunk)
            self._filled = 0

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class PartFile:
    """What has come of a transfer so far."""

    def __init__(self, path: Path, descriptor: int, geometry: Geometry) -> None:
        self._path, self._descriptor, self._geometry = path, descriptor, geometry

    def write(self, index: int, data: bytearray | bytes) -> None:
        """Write a verified chunk to its place.

        Raises:
            StorageFull, StorageError: it cannot be written.
        """
        offset = index * self._geometry.chunk_bytes
        with memoryview(data) as view, _disk(f"cannot write {self._path}"):
            done = 0
            while done < len(view):
                done += os.pwrite(self._descriptor, view[done:], offset + done)

    def read(self, index: int) -> bytes:
        """Return a chunk as it is on the disk; shorter if the file ends before it does."""
        with _disk(f"cannot read {self._path}"):
            return os.pread(self._descriptor, self._geometry.size(index), index * self._geometry.chunk_bytes)

    def holds(self, chunks: int) -> bool:
        """Whether the file is long enough for so many chunks."""
        with _disk(f"cannot read {self._path}"):
            wanted = min(chunks * self._geometry.chunk_bytes, self._geometry.length)
            return os.fstat(self._descriptor).st_size >= wanted

    def sync(self) -> None:
        """Bring what was written to the disk."""
        with _disk(f"cannot write {self._path}"):
            os.fdatasync(self._descriptor)

    def count_good(self, leaves: bytes, start: int) -> int:
        """Return how many chunks from the beginning are good: `start` are known to be, the next ones are looked at."""
        index = start
        while index < self._geometry.chunks and leaf_hash(self.read(index)) == leaf_at(leaves, index):
            index += 1
        return index

    def check_length(self) -> None:
        """Cut off what is behind the last chunk.

        Raises:
            StorageError: the file is shorter than all chunks.
        """
        with _disk(f"cannot read {self._path}"):
            size = os.fstat(self._descriptor).st_size
            if size > self._geometry.length:
                os.ftruncate(self._descriptor, self._geometry.length)
        if size < self._geometry.length:
            raise StorageError(f"{self._path} lacks {self._geometry.length - size} bytes")

    def close(self) -> None:
        """Close the file; what was written stays."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def split_leaves(leaves: bytes) -> Sequence[bytes]:
    """Return joined digests one by one."""
    return [leaves[at : at + LEAF_BYTES] for at in range(0, len(leaves), LEAF_BYTES)]


def leaf_at(leaves: bytes, index: int) -> bytes:
    """Return digest `index` of joined ones."""
    return leaves[index * LEAF_BYTES : (index + 1) * LEAF_BYTES]


def _write_all(descriptor: int, data: bytes | memoryview) -> None:
    with memoryview(data) as view:
        done = 0
        while done < len(view):
            done += os.write(descriptor, view[done:])
