"""A file system in memory that can lose power: what was not synced is gone, as on a disk with a volatile cache.

It speaks the kernel's FUSE protocol (linux/fuse.h, 7.31) over /dev/fuse itself and mounts by mount(2), so it needs
root but no library. A file's bytes survive a cut as of its last fsync or fdatasync; a name survives when the folder
was synced after it was made, moved or removed.

As a script, `python ingest_fuse.py MOUNTPOINT` serves until its input ends. Commands, one on a line, each answered by
`ok`: `cut FOLDER` writes what survives into FOLDER and lets everything fail afterwards; `tear SEED` lets, at the cut,
some of what was not synced survive too, name by name and block by block, as caches empty themselves in any order;
`fail_sync CODE` lets syncs fail with that errno (0: no more); `capacity BYTES` bounds the sum of all files.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import stat
import struct
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

ROOT = 1
_IN = struct.Struct("<IIQQIIIHxx")
_OUT = struct.Struct("<IiQ")
_ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
_MAX_WRITE = 1 << 20
_BLOCK = 4096


@dataclass
class Node:
    """A file or folder: what programs see, and what would survive a cut."""

    number: int
    mode: int
    data: bytearray = field(default_factory=bytearray)
    kept_data: bytes = b""
    names: dict[str, int] = field(default_factory=dict)
    kept_names: dict[str, int] = field(default_factory=dict)


class PowerCutFS:
    """The tree, and an answer to each request of the kernel."""

    def __init__(self) -> None:
        self.nodes = {ROOT: Node(ROOT, stat.S_IFDIR | 0o700)}
        self.lock = threading.Lock()
        self.dead = False
        self.sync_error = 0
        self.capacity = 1 << 40
        self.chance: random.Random | None = None

    # --- control

    def cut(self, folder: Path) -> None:
        """Write what survives into `folder`; from now on every request fails."""
        with self.lock:
            self.dead = True
            self._write_kept(self.nodes[ROOT], folder)

    def _write_kept(self, node: Node, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, number in self.surviving_names(node).items():
            child = self.nodes[number]
            if stat.S_ISDIR(child.mode):
                self._write_kept(child, folder / name)
            else:
                (folder / name).write_bytes(self.surviving_data(child))

    def surviving_names(self, node: Node) -> dict[str, int]:
        names = dict(node.kept_names)
        if self.chance is not None:
            names |= {name: number for name, number in node.names.items() if self.chance.random() < 0.5}
        return names

    def surviving_data(self, node: Node) -> bytes:
        if self.chance is None or self.chance.random() < 0.3:
            return node.kept_data
        data = bytearray(node.kept_data.ljust(len(node.data), b"\0"))
        for at in range(0, len(node.data), _BLOCK):
            if self.chance.random() < 0.5:
                data[at : at + _BLOCK] = node.data[at : at + _BLOCK]
        return bytes(data)

    # --- requests

    def answer(self, opcode: int, number: int, body: bytes) -> bytes | None:
        """The reply to a request; None where the kernel expects none.

        Raises:
            OSError: the request fails with this errno.
        """
        if opcode in (2, 36, 42):  # FORGET, INTERRUPT, BATCH_FORGET
            return None
        if opcode == 26:  # INIT
            flags = 1 << 3 | 1 << 5 | 1 << 22  # ATOMIC_O_TRUNC, BIG_WRITES, MAX_PAGES
            return struct.pack("<IIIIHHIIHHI28x", 7, 31, 65536, flags, 16, 12, _MAX_WRITE, 1, _MAX_WRITE // 4096, 0, 0)
        handler = _HANDLERS.get(opcode)
        if handler is None:
            raise OSError(errno.ENOSYS, "")
        with self.lock:
            if self.dead:
                raise OSError(errno.EIO, "")
            node = self.nodes.get(number)
            if node is None:
                raise OSError(errno.ESTALE, "")
            return handler(self, node, body)

    def attributes(self, node: Node) -> bytes:
        size = len(node.data)
        return _ATTR.pack(
            node.number, size, -(-size // 512), 0, 0, 0, 0, 0, 0, node.mode, 1, os.getuid(), os.getgid(), 0, _BLOCK, 0
        )

    def entry(self, node: Node) -> bytes:
        return struct.pack("<QQQQII", node.number, 0, 0, 0, 0, 0) + self.attributes(node)

    def child(self, node: Node, name: str) -> Node:
        if name not in node.names:
            raise OSError(errno.ENOENT, "")
        return self.nodes[node.names[name]]

    def new(self, parent: Node, name: str, mode: int) -> Node:
        if name in parent.names:
            raise OSError(errno.EEXIST, "")
        node = Node(max(self.nodes) + 1, mode)
        self.nodes[node.number] = node
        parent.names[name] = node.number
        return node

    def lookup(self, node: Node, body: bytes) -> bytes:
        return self.entry(self.child(node, _name(body)))

    def getattr(self, node: Node, _body: bytes) -> bytes:
        return bytes(16) + self.attributes(node)

    def setattr(self, node: Node, body: bytes) -> bytes:
        (valid,) = struct.unpack_from("<I", body)
        if valid & 1:
            (mode,) = struct.unpack_from("<I", body, 68)
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)
        if valid & 8:
            (size,) = struct.unpack_from("<Q", body, 16)
            del node.data[size:]
            node.data.extend(bytes(size - len(node.data)))
        return self.getattr(node, body)

    def mkdir(self, node: Node, body: bytes) -> bytes:
        (mode,) = struct.unpack_from("<I", body)
        return self.entry(self.new(node, _name(body[8:]), stat.S_IFDIR | stat.S_IMODE(mode)))

    def remove(self, node: Node, body: bytes) -> bytes:
        self.child(node, _name(body))
        del node.names[_name(body)]
        return b""

    def rename(self, node: Node, body: bytes, *, head: int = 8) -> bytes:
        (target,) = struct.unpack_from("<Q", body)
        old, new = body[head:].split(b"\0")[:2]
        moved = self.child(node, old.decode())
        del node.names[old.decode()]
        self.nodes[target].names[new.decode()] = moved.number
        return b""

    def rename2(self, node: Node, body: bytes) -> bytes:
        return self.rename(node, body, head=16)

    def link(self, node: Node, body: bytes) -> bytes:
        (old,) = struct.unpack_from("<Q", body)
        node.names[_name(body[8:])] = old
        return self.entry(self.nodes[old])

    def open(self, node: Node, body: bytes) -> bytes:
        (flags,) = struct.unpack_from("<I", body)
        if flags & os.O_TRUNC:
            node.data.clear()
        return struct.pack("<QII", 0, 0, 0)

    def create(self, node: Node, body: bytes) -> bytes:
        _, mode = struct.unpack_from("<II", body)
        new = self.new(node, _name(body[16:]), stat.S_IFREG | stat.S_IMODE(mode))
        return self.entry(new) + struct.pack("<QII", 0, 0, 0)

    def read(self, node: Node, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        return bytes(node.data[offset : offset + size])

    def write(self, node: Node, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        growth = max(0, offset + size - len(node.data))
        if sum(len(other.data) for other in self.nodes.values()) + growth > self.capacity:
            raise OSError(errno.ENOSPC, "")
        node.data.extend(bytes(max(0, offset - len(node.data))))
        node.data[offset : offset + size] = body[40 : 40 + size]
        return struct.pack("<II", size, 0)

    def fsync(self, node: Node, _body: bytes) -> bytes:
        if self.sync_error:
            raise OSError(self.sync_error, "")
        node.kept_data = bytes(node.data)
        return b""

    def fsyncdir(self, node: Node, _body: bytes) -> bytes:
        if self.sync_error:
            raise OSError(self.sync_error, "")
        node.kept_names = dict(node.names)
        return b""

    def statfs(self, _node: Node, _body: bytes) -> bytes:
        used = sum(len(other.data) for other in self.nodes.values())
        free = max(0, self.capacity - used) // _BLOCK
        return struct.pack("<QQQQQIIII24x", self.capacity // _BLOCK, free, free, 10**6, 10**6, _BLOCK, 255, _BLOCK, 0)

    def readdir(self, node: Node, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        listing = b""
        for place, (name, number) in enumerate(list(node.names.items())[offset:], start=offset + 1):
            raw = name.encode()
            entry = struct.pack("<QQII", number, place, len(raw), self.nodes[number].mode >> 12) + raw
            entry += bytes(-len(entry) % 8)
            if len(listing) + len(entry) > size:
                break
            listing += entry
        return listing

    def nothing(self, _node: Node, _body: bytes) -> bytes:
        return b""


_HANDLERS = {
    1: PowerCutFS.lookup,
    3: PowerCutFS.getattr,
    4: PowerCutFS.setattr,
    9: PowerCutFS.mkdir,
    10: PowerCutFS.remove,
    11: PowerCutFS.remove,
    12: PowerCutFS.rename,
    13: PowerCutFS.link,
    14: PowerCutFS.open,
    15: PowerCutFS.read,
    16: PowerCutFS.write,
    17: PowerCutFS.statfs,
    18: PowerCutFS.nothing,  # RELEASE
    20: PowerCutFS.fsync,
    25: PowerCutFS.nothing,  # FLUSH
    27: PowerCutFS.open,  # OPENDIR
    28: PowerCutFS.readdir,
    29: PowerCutFS.nothing,  # RELEASEDIR
    30: PowerCutFS.fsyncdir,
    34: PowerCutFS.nothing,  # ACCESS
    35: PowerCutFS.create,
    45: PowerCutFS.rename2,
}


def _name(body: bytes) -> str:
    return body.split(b"\0", 1)[0].decode()


def serve(device: int, system: PowerCutFS) -> None:
    """Answer the kernel until the file system is unmounted."""
    while True:
        try:
            request = os.read(device, _MAX_WRITE + 65536)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return
            if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                continue
            raise
        length, opcode, unique, node, *_ = _IN.unpack_from(request)
        try:
            reply, code = system.answer(opcode, node, request[_IN.size : length]), 0
        except OSError as error:
            reply, code = b"", -(error.errno or errno.EIO)
        if reply is not None:
            try:
                os.write(device, _OUT.pack(_OUT.size + len(reply), code, unique) + reply)
            except FileNotFoundError:
                continue  # the request was interrupted, its process killed


def main() -> None:
    """See the module."""
    mountpoint = Path(sys.argv[1])
    libc = ctypes.CDLL(None, use_errno=True)
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
    if libc.mount(b"power-cut", bytes(mountpoint), b"fuse.powercut", ctypes.c_ulong(2 | 4), options.encode()):
        raise OSError(ctypes.get_errno(), f"mount: {os.strerror(ctypes.get_errno())}")
    system = PowerCutFS()
    threading.Thread(target=serve, args=(device, system), daemon=True).start()
    say("ok")
    for line in sys.stdin:
        command, argument = line.split(maxsplit=1)
        if command == "cut":
            system.cut(Path(argument.strip()))
        elif command == "tear":
            system.chance = random.Random(int(argument))
        elif command == "fail_sync":
            system.sync_error = int(argument)
        else:
            system.capacity = int(argument)
        say("ok")
    libc.umount2(bytes(mountpoint), 2)  # MNT_DETACH: whoever still has a file open does not hold it up


def say(text: str) -> None:
    """Answer the test."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Mounted:
    """The file system in a process of its own, seen from a test."""

    def __init__(self, mountpoint: Path) -> None:
        mountpoint.mkdir()
        self.path = mountpoint
        self._server = subprocess.Popen(
            [sys.executable, __file__, str(mountpoint)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.works = self._server.stdout.readline() == "ok\n"

    def tell(self, command: str, argument: object) -> None:
        """Give a command and wait until it is done."""
        self._server.stdin.write(f"{command} {argument}\n")
        self._server.stdin.flush()
        assert self._server.stdout.readline() == "ok\n"

    def close(self) -> None:
        """Unmount."""
        self._server.communicate(timeout=20)


if __name__ == "__main__":
    main()
