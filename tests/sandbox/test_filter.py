"""The filter read as the kernel reads it, instruction for instruction, on both processors."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path

import pytest

from alp.errors import SandboxUnavailable
from alp.tasks import sandbox_filter
from alp.tasks.sandbox_filter import assemble

AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOW, KILL = 0x7FFF0000, 0x80000000
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


def _answer(machine: str, number: int, first: int = 0, *, audit: int | None = None) -> int:
    """What the filter says of a system call (linux/bpf_common.h, linux/seccomp.h)."""
    data = struct.pack("<IIQ6Q", number, AUDIT[machine] if audit is None else audit, 0, first, 0, 0, 0, 0, 0)
    program = [struct.unpack_from("<HBBI", assemble(machine), 8 * at) for at in range(len(assemble(machine)) // 8)]
    at = accumulator = 0
    while True:
        code, then, otherwise, value = program[at]
        at += 1
        if code == 0x06:
            return value
        if code == 0x20:
            accumulator = struct.unpack_from("<I", data, value)[0]
            continue
        holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[code]
        at += then if holds else otherwise


def _refused(number: int) -> int:
    return 0x50000 | number


@pytest.mark.parametrize("machine", AUDIT)
def test_calls_are_refused_by_their_numbers(machine: str) -> None:
    column = list(AUDIT).index(machine)
    for numbers in sandbox_filter._REFUSED.values():
        if (number := numbers[column]) is not None:
            assert _answer(machine, number) == _refused(errno.EPERM)
    for numbers in sandbox_filter._ABSENT.values():
        assert _answer(machine, int(numbers[column] or 0)) == _refused(errno.ENOSYS)
    for read in ({"x86_64": 0, "aarch64": 63}[machine], {"x86_64": 231, "aarch64": 94}[machine]):
        assert _answer(machine, read) == ALLOW
    assert _answer(machine, 451) == _answer(machine, 2000) == _refused(errno.ENOSYS)


@pytest.mark.parametrize("machine", AUDIT)
def test_arguments_decide_about_clones_and_sockets(machine: str) -> None:
    clone, socket, pair = {"x86_64": (56, 41, 53), "aarch64": (220, 198, 199)}[machine]
    fork, thread = 0x1200011, 0x3D0F00
    assert _answer(machine, clone, fork) == _answer(machine, clone, thread) == ALLOW
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000, 0x8000):
        assert _answer(machine, clone, fork | flag) == _refused(errno.EPERM)
    for call in (socket, pair):
        assert _answer(machine, call, 1) == ALLOW
        assert all(_answer(machine, call, family) == _refused(errno.EACCES) for family in (0, 2, 10, 16, 17, 40))


def test_calls_of_another_kind_end_the_process() -> None:
    assert _answer("x86_64", 0, audit=0x40000003) == KILL  # of a 32-bit program
    assert _answer("x86_64", 0x40000000) == KILL  # x32
    assert _answer("aarch64", 0, audit=AUDIT["x86_64"]) == KILL


@pytest.mark.parametrize("machine", AUDIT)
def test_numbers_are_those_of_the_kernel(machine: str) -> None:
    if not HEADERS[machine].is_file():
        pytest.skip("the kernel's headers are not installed")
    text = HEADERS[machine].read_text(encoding="utf-8")
    numbers = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)}
    column = list(AUDIT).index(machine)
    listed = sandbox_filter._REFUSED | sandbox_filter._ABSENT
    listed |= {
        "clone": sandbox_filter._CLONE,
        "socket": sandbox_filter._SOCKETS[0],
        "socketpair": sandbox_filter._SOCKETS[1],
    }
    for name, pair in listed.items():
        assert numbers.get(name) == pair[column], name


def test_another_processor_is_refused() -> None:
    with pytest.raises(SandboxUnavailable, match="this is riscv64"):
        assemble("riscv64")
