"""Calls of the Linux kernel that Python 3.11 has no function for. Standard library only: it runs inside the sandbox.

Numbers are those of the kernel's headers (linux/prctl.h, linux/sched.h, linux/mount.h, linux/capability.h).
"""

from __future__ import annotations

import ctypes
import os
import struct

NEW_MOUNTS, NEW_PIDS, NEW_USERS = 0x0002_0000, 0x2000_0000, 0x1000_0000
_NOSUID, _NODEV, _NOEXEC, _RECURSIVE, _PRIVATE, _READ_ONLY = 2, 4, 8, 0x4000, 0x4_0000, 1
_DETACH = 2
_SET_DUMPABLE, _SET_SECCOMP, _NO_NEW_PRIVILEGES = 4, 22, 38
_FILTER = 2
_FIXED_ADDRESSES, _ASK = 0x0004_0000, 0xFFFF_FFFF
_CAPABILITIES = 0x2008_0522

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def _call(name: str, *arguments: object) -> int:
    """Call the C library. Raises OSError that names the function."""
    value = int(getattr(_libc, name)(*arguments))
    if value == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return value


def fix_addresses() -> bool:
    """Have programs that are executed from here on lie at the same addresses; whether this process did not yet."""
    current = _call("personality", ctypes.c_ulong(_ASK))
    if current & _FIXED_ADDRESSES:
        return False
    _call("personality", ctypes.c_ulong(current | _FIXED_ADDRESSES))
    return True


def unshare(flags: int) -> None:
    _call("unshare", flags)


def enter_pids(handle: int) -> None:
    """Children from here on begin in the process namespace behind ``handle``."""
    _call("setns", handle, NEW_PIDS)


def keep_mounts_private() -> None:
    _call("mount", None, b"/", None, ctypes.c_ulong(_RECURSIVE | _PRIVATE), None)


def mount_tmpfs(place: str, options: str, *, read_only: bool = False) -> None:
    flags = _NOSUID | _NODEV | _NOEXEC | (_READ_ONLY if read_only else 0)
    _call("mount", b"tmpfs", place.encode(), b"tmpfs", ctypes.c_ulong(flags), options.encode())


def unmount(place: str) -> None:
    _call("umount2", place.encode(), _DETACH)


def set_dumpable(yes: bool) -> None:
    """Whether other processes of the same user may look into this one."""
    _call("prctl", _SET_DUMPABLE, ctypes.c_ulong(yes), *[ctypes.c_ulong(0)] * 3)


def drop_capabilities() -> None:
    _call("capset", struct.pack("Ii", _CAPABILITIES, 0), bytes(24))


class Filter:
    """A seccomp filter, laid out beforehand so that a fork only installs it."""

    def __init__(self, instructions: bytes) -> None:
        self._instructions = ctypes.create_string_buffer(instructions, len(instructions))
        self._program = _Program(len(instructions) // 8, ctypes.addressof(self._instructions))

    def install(self) -> None:
        """For ever, for this process and what it starts."""
        _call("prctl", _NO_NEW_PRIVILEGES, ctypes.c_ulong(1), *[ctypes.c_ulong(0)] * 3)
        _call("prctl", _SET_SECCOMP, ctypes.c_ulong(_FILTER), ctypes.byref(self._program), *[ctypes.c_ulong(0)] * 2)
