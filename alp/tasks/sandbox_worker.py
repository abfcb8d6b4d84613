"""The other end of :mod:`alp.tasks.sandbox_process`: sets the sandbox up from inside, and watches one program after the
other.

Standard library only; started by bubblewrap with a socket as standard input. A program gets a process namespace and a
scratch folder of its own, both made before it and gone after it. It runs in a fork of the loaded interpreter
(:mod:`alp.tasks.sandbox_program`), which reports how it ended; this process has none of the program's code, is not seen
by it, and reads its streams, CPU time and memory from outside.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Iterable
from time import monotonic
from typing import Any, NamedTuple

from alp.tasks import sandbox_kernel as kernel
from alp.tasks import sandbox_program as program

REQUEST = struct.Struct("<ddQQ")  # CPU seconds, wall seconds, bytes of code, bytes of stdin; then both
ANSWER = struct.Struct("<iBdQQ")  # wait status, ended by, wall seconds, bytes of stdout, bytes of stderr; then both
ENDED_BY = ("itself", "cpu", "wall", "memory", "output", "unfit")
SCRATCH = "/tmp"
_USER_INSIDE = 1000
_LOOK_SECONDS = 0.01  # between two looks at CPU time and memory
_OWN = 4  # processes beside the program's: what waits for this one, this one, the loaded one, the namespace's first
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = os.sysconf("SC_CLK_TCK")


def main() -> program.Program:
    """Serve until the socket closes. Returns only in the fork that is to run a program."""
    _become_own_user(int(sys.argv[1]))
    with contextlib.suppress(OSError):  # where that is forbidden, addresses differ from worker to worker
        if len(sys.argv) == 2 and kernel.fix_addresses():
            os.execv(sys.executable, [*sys.orig_argv, "again"])
    control = socket.socket(fileno=os.dup(0))
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    size = int.from_bytes(_receive(control, 8), "little")
    config = json.loads(_receive(control, size))
    try:
        processes, waiting = _own_namespaces(), os.getpid()
        if child := os.fork():  # what is forked is the first process of the new namespace
            control.close()
            os.waitpid(child, 0)
            os._exit(0)
        orders, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            for handle in (control, orders):
                handle.close()
            os.dup2(nowhere, 2)
            end.send(os.readlink("self", dir_fd=processes).encode())
            os.close(processes)
            return program.serve(end, config | {"own_processes": _OWN})
        end.close()
        worker = Worker(control, orders, processes, waiting, config)
    except Exception as error:
        _say(control, f"{type(error).__name__}: {error}")
        os._exit(1)
    os.dup2(nowhere, 2)
    _say(control, "")
    worker.serve()
    os._exit(0)


def _become_own_user(user: int) -> None:
    """Root becomes a user that owns nothing: the kernel counts no processes of root."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        kernel.set_dumpable(True)  # or its own files in /proc stay root's


def _own_namespaces() -> int:
    """A user namespace in which this process may mount, and begin namespaces of processes; returns /proc, of which
    nothing is to be seen any more."""
    user, group = os.geteuid(), os.getegid()
    kernel.unshare(kernel.NEW_USERS | kernel.NEW_MOUNTS | kernel.NEW_PIDS)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{_USER_INSIDE} {user} 1"),
        ("gid_map", f"{_USER_INSIDE} {group} 1"),
        ("oom_score_adj", "1000"),  # if the machine's memory ends, these processes go first
    ):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as stream:
            stream.write(text)
    processes = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    kernel.keep_mounts_private()
    kernel.mount_tmpfs("/proc", "size=4k,nr_inodes=1,mode=0555", read_only=True)
    return processes


class Worker:
    """One program at a time."""

    def __init__(
        self, control: socket.socket, orders: socket.socket, processes: int, waiting: int, config: dict[str, Any]
    ) -> None:
        loaded = orders.recv(64).decode()
        if orders.recv(64) != b"loaded":
            raise RuntimeError("the libraries cannot be loaded")
        self._control, self._orders, self._processes, self._config = control, orders, processes, config
        # By their numbers in /proc, which is bubblewrap's: those that this process knows count from its own namespace.
        self._own = {"1", str(waiting), os.readlink("self", dir_fd=processes), loaded}
        with self._open(f"{loaded}/statm") as stream:
            size, resident = stream.read().split()[:2]
        self._loaded_bytes, self._loaded_resident = int(size) * _PAGE, int(resident) * _PAGE
        self._own_pids = self._handle("self/ns/pid")
        self._prepared = False
        self._prepare()

    def _handle(self, name: str) -> int:
        return os.open(name, os.O_RDONLY, dir_fd=self._processes)

    def _open(self, name: str) -> Any:
        return open(self._handle(name), encoding="ascii")

    def serve(self) -> None:
        """Answer requests until the socket closes."""
        while header := _receive(self._control, REQUEST.size, end=True):
            cpu, wall, code, stdin = REQUEST.unpack(header)
            text = _receive(self._control, code)
            self._control.sendall(self._run(cpu, wall, text, _receive(self._control, stdin)))
            self._prepare()

    def _prepare(self) -> None:
        """An empty scratch folder, and a process namespace with a first process, whose end is the end of all in it."""
        if self._prepared:
            kernel.unmount(SCRATCH)
        size, files = self._config["scratch_bytes"], self._config["scratch_files"]
        kernel.mount_tmpfs(SCRATCH, f"size={size},nr_inodes={files + 1},mode=0700")
        kernel.enter_pids(self._own_pids)
        kernel.unshare(kernel.NEW_PIDS)
        self._first = os.fork()
        if self._first == 0:
            _be_first()
        self._pids = self._handle("self/ns/pid_for_children")
        self._prepared = True

    def _run(self, cpu: float, wall: float, code: bytes, stdin: bytes) -> bytes:
        pipes = [os.pipe() for _ in range(3)]
        given = [self._pids, self._file(code), self._file(stdin), *(writing for _, writing in pipes)]
        order = program.ORDER.pack(math.ceil(cpu) + 1, self._loaded_bytes)
        watch = Watch(self, cpu, wall, [reading for reading, _ in pipes])
        socket.send_fds(self._orders, [order], given)
        for handle in given:
            os.close(handle)
        watch.until_the_end()
        self.kill()
        os.waitpid(self._first, 0)  # which is when nothing of the program is left
        self._first = 0
        try:
            return watch.answer()
        finally:
            for reading, _ in pipes:
                os.close(reading)

    def _file(self, content: bytes) -> int:
        """A handle from which ``content`` can be read, and nothing else done."""
        handle = os.memfd_create("program")
        with open(handle, "wb", closefd=False) as stream:
            stream.write(content)
        reading = self._handle(f"self/fd/{handle}")
        os.close(handle)
        return reading

    def kill(self) -> None:
        """End whatever the program has started, and the program."""
        if self._first:
            os.kill(self._first, signal.SIGKILL)

    def members(self) -> dict[str, Use]:
        """What the program's processes use, by their numbers in /proc."""
        found = {}
        for pid in os.listdir(self._processes):
            if pid.isdigit() and pid not in self._own:
                with contextlib.suppress(OSError, ValueError, IndexError), self._open(f"{pid}/stat") as stream:
                    fields = list(map(int, stream.read().rpartition(")")[2].split()[1:22]))
                    cpu, waited_for = sum(fields[10:12]) / _TICK, sum(fields[12:14]) / _TICK
                    found[pid] = Use(cpu, waited_for, max(0, fields[20] * _PAGE - self._loaded_resident))
        return found

    def waited(self, members: Iterable[str]) -> float:
        """Seconds that a process was ready to run and had no processor, the most of any: the machine's doing."""
        waits = [0.0]
        for pid in members:
            with contextlib.suppress(OSError, ValueError, IndexError), self._open(f"{pid}/schedstat") as stream:
                waits.append(int(stream.read().split()[1]) / 1e9)
        return max(waits)

    def part(self, pid: str) -> int:
        """Bytes of memory that a process holds, its part of what several hold."""
        with contextlib.suppress(OSError, ValueError), self._open(f"{pid}/smaps_rollup") as stream:
            return sum(int(line.split()[1]) * 1024 for line in stream if line.startswith("Pss:"))
        return 0


class Use(NamedTuple):
    """CPU seconds of a process and of its ended children, bytes of memory beyond the loaded interpreter's."""

    cpu: float
    waited_for: float
    memory: int


class Watch:
    """One program, from outside."""

    def __init__(self, worker: Worker, cpu: float, wall: float, readings: list[int]) -> None:
        self._worker, self._cpu, self._wall = worker, cpu, wall
        self._out, self._err, self._guarded = readings
        self._most, self._memory = worker._config["output_bytes"], worker._config["memory_bytes"]
        self._texts = {self._out: bytearray(), self._err: bytearray()}
        self._cpus: dict[str, float] = {}
        self._ended_by, self._status = 0, 0
        self._started = self._ended = monotonic()

    def until_the_end(self) -> None:
        """Read, and look now and then, until the program's process has ended; whichever limit it meets ends it."""
        orders, control = self._worker._orders.fileno(), self._worker._control.fileno()
        poll = select.poll()
        for handle in (self._out, self._err, orders):
            poll.register(handle, select.POLLIN)
        poll.register(control, select.POLLRDHUP)
        next_look = self._started + _LOOK_SECONDS
        while True:
            for handle, _ in poll.poll(max(0.0, next_look - monotonic()) * 1000 + 0.5):
                if handle == control:  # whoever asked is gone
                    os._exit(0)
                if handle == orders:
                    self._ended = monotonic()
                    report = os.read(orders, program.REPORT.size)
                    if not report:
                        os._exit(1)
                    self._status, _ = program.REPORT.unpack(report)
                    return
                if not self._read(handle):
                    poll.unregister(handle)
            if monotonic() >= next_look:
                self._look()
                next_look = monotonic() + _LOOK_SECONDS

    def _read(self, handle: int) -> bool:
        """Take what is there; whether more may come."""
        text = self._texts[handle]
        piece = os.read(handle, 65536)
        text += piece
        if len(text) > self._most:
            del text[self._most :]
            self._end("output")
            return False
        return bool(piece)

    def _end(self, why: str) -> None:
        if not self._ended_by:
            self._ended_by = ENDED_BY.index(why)
            self._worker.kill()

    def _look(self) -> None:
        members = self._worker.members()
        self._cpus |= {pid: use.cpu for pid, use in members.items()}
        alive = sum(use.cpu + use.waited_for for use in members.values())
        if max(sum(self._cpus.values()), alive) > self._cpu:
            self._end("cpu")
        elif self._held(members) > self._memory:
            self._end("memory")
        elif monotonic() - self._started - self._worker.waited(members) > self._wall:
            self._end("wall")

    def _held(self, members: dict[str, Use]) -> int:
        """Bytes of memory of all processes together; what they share is counted once where that decides."""
        most = sum(use.memory for use in members.values())
        return most if most <= self._memory else sum(map(self._worker.part, members))

    def answer(self) -> bytes:
        """What is known once everything has ended."""
        for handle in (self._out, self._err):
            while len(self._texts[handle]) < self._most and self._read(handle):
                pass
            if len(self._texts[handle]) == self._most and os.read(handle, 1):
                self._ended_by = self._ended_by or ENDED_BY.index("output")
        said = os.read(self._guarded, 4096)
        ended_by, texts = self._ended_by, [bytes(self._texts[handle]) for handle in (self._out, self._err)]
        killed = os.WIFSIGNALED(self._status) and os.WTERMSIG(self._status) == signal.SIGKILL
        if not killed and ENDED_BY[ended_by] != "output":  # it was faster
            ended_by = ENDED_BY.index("cpu") if self._over_cpu() else 0
        if said != program.GUARDED and (said or not ended_by):
            ended_by, texts = ENDED_BY.index("unfit"), [said or b"it ended before its guards stood", b""]
        seconds = self._ended - self._started
        return ANSWER.pack(self._status, ended_by, seconds, *map(len, texts)) + b"".join(texts)

    def _over_cpu(self) -> bool:
        """Whether the kernel's own limit ended it."""
        return os.WIFSIGNALED(self._status) and os.WTERMSIG(self._status) == signal.SIGXCPU


def _be_first() -> None:
    """The first process of a namespace: deaf, blind, and parent of the orphans."""
    os.closerange(0, 1024)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    kernel.set_dumpable(False)
    while True:
        signal.pause()


def _receive(control: socket.socket, count: int, *, end: bool = False) -> bytes:
    """Exactly so many bytes; none, where it may end here. Ends the process when the other side is gone."""
    found = bytearray()
    while len(found) < count:
        piece = control.recv(min(count - len(found), 1 << 20))
        if not piece:
            if end and not found:
                return b""
            os._exit(0)
        found += piece
    return bytes(found)


def _say(control: socket.socket, text: str) -> None:
    content = text.encode(errors="replace")
    control.sendall(len(content).to_bytes(8, "little") + content)
