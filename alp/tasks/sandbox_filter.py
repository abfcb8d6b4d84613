"""What a sandboxed program may ask of the kernel: a seccomp filter (seccomp(2)) as the kernel reads it.

Refused with an error that Python shows as one: what makes or enters namespaces, mounts, traces or reads other
processes, reaches a network, and what keeps memory that no limit of a process counts (System V and POSIX queues, shared
segments, anonymous files). Calls that a later kernel brings do not exist for a program.
"""

from __future__ import annotations

import errno
import struct

from alp.errors import SandboxUnavailable

# name: its number on x86_64, on aarch64 (None: it has none)
_REFUSED: dict[str, tuple[int, int | None]] = {
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "fanotify_init": (300, 262),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "perf_event_open": (298, 241),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "syslog": (103, 116),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "lookup_dcookie": (212, 18),
    "vhangup": (153, 58),
    "personality": (135, 92),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "shmdt": (67, 197),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "uselib": (134, None),
    "ustat": (136, None),
    "sysfs": (139, None),
}
# Libraries go another way when these are not there; their arguments stand in memory, where a filter cannot look.
_ABSENT: dict[str, tuple[int, int | None]] = {
    "clone3": (435, 435),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
}
_CLONE, _SOCKETS = (56, 220), ((41, 198), (53, 199))
_NEWEST = 450  # the last call that this list was made for
_CLONE_FLAGS = 0x7E02_0000 | 0x8000  # a namespace of any kind; CLONE_PARENT, a child that nobody would wait for
_AF_UNIX = 1
_MACHINES = {"x86_64": (0, 0xC000_003E), "aarch64": (1, 0xC000_00B7)}  # column above, AUDIT_ARCH of linux/audit.h
_X32 = 0x4000_0000  # the second set of numbers on x86_64

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF_0000, 0x8000_0000, 0x0005_0000
_NUMBER, _MACHINE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data, little-endian


def assemble(machine: str) -> bytes:
    """The filter for ``platform.machine()``: struct sock_filter, one after the other. Raises SandboxUnavailable."""
    if machine not in _MACHINES:
        raise SandboxUnavailable(
            f"the sandbox knows the system calls of {' and '.join(_MACHINES)} only, this is {machine}"
        )
    column, audit = _MACHINES[machine]
    code = [_load(_MACHINE), _step(_EQUAL, audit, 1, 0), _give(_KILL), _load(_NUMBER)]
    if machine == "x86_64":
        code += [_step(_AT_LEAST, _X32, 0, 1), _give(_KILL)]
    code += [_step(_AT_LEAST, _NEWEST + 1, 0, 1), _give(_ERRNO | errno.ENOSYS)]
    for calls, answer in ((_REFUSED, errno.EPERM), (_ABSENT, errno.ENOSYS)):
        for numbers in calls.values():
            if numbers[column] is not None:
                code += [_step(_EQUAL, int(numbers[column] or 0), 0, 1), _give(_ERRNO | answer)]
    code += [_step(_EQUAL, _CLONE[column], 0, 4), _load(_FIRST_ARGUMENT)]
    code += [_step(_ANY_BIT, _CLONE_FLAGS, 0, 1), _give(_ERRNO | errno.EPERM), _give(_ALLOW)]
    for numbers in _SOCKETS:
        code += [_step(_EQUAL, numbers[column], 0, 4), _load(_FIRST_ARGUMENT)]
        code += [_step(_EQUAL, _AF_UNIX, 1, 0), _give(_ERRNO | errno.EACCES), _give(_ALLOW)]
    return b"".join([*code, _give(_ALLOW)])


def _step(kind: int, value: int, then: int, otherwise: int) -> bytes:
    """One instruction: what it compares with, and how many to skip in either case."""
    return struct.pack("<HBBI", kind, then, otherwise, value)


def _load(offset: int) -> bytes:
    return _step(_LOAD, offset, 0, 0)


def _give(answer: int) -> bytes:
    return _step(_RETURN, answer, 0, 0)
