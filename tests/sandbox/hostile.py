# ruff: noqa: E501 - programs as they would be sent
"""Programs that try to get out, to take all, or to stay. One that gets what it wants prints ESCAPED, and what.

``{outside}`` is a folder of the machine that any user may write in, ``{repository}`` this one, ``{secret}`` a text that
stands in the environment of who started the sandbox, and in a file of that folder.
"""

from __future__ import annotations

_REACH = """
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
def reached(what, value):
    if value is not None and value >= 0:
        print("ESCAPED", what, value)
def call(number, *arguments):
    return libc.syscall(ctypes.c_long(number), *[ctypes.c_long(each) for each in arguments])
def numbers(x86_64, aarch64):
    return x86_64 if os.uname().machine == "x86_64" else aarch64
"""
_TRY = """
def attempt(what, function, *arguments):
    try:
        value = function(*arguments)
    except BaseException as error:
        print(what, type(error).__name__)
    else:
        print("ESCAPED", what, value)
"""

HOSTILE: dict[str, str] = {
    "fork_bomb": "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n",
    "fork_chain": "import os\nwhile True:\n    if os.fork():\n        os._exit(0)\n",
    "fork_and_wait": "import os\nwhile True:\n    if not os.fork():\n        sum(range(10**5))\n        os._exit(0)\n    os.wait()\n",
    "thread_bomb": "import threading, time\nwhile True:\n    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n",
    "sibling_of_the_parent": _REACH + "reached('CLONE_PARENT', call(numbers(56, 220), 0x8000 | 17, 0, 0, 0, 0))\n",
    "memory_bomb": "kept = []\nwhile True:\n    kept.append(bytearray(b'x' * 2**22))\n",
    "memory_at_once": "bytearray(2**45)\n",
    "memory_of_many": "import os, time\nfor _ in range(3):\n    os.fork()\nkept = bytearray(b'x') * (200 * 2**20)\ntime.sleep(60)\n",
    "memory_shared": "import mmap, os, time\nfor _ in range(3):\n    os.fork()\npage = mmap.mmap(-1, 200 * 2**20)\nfor at in range(0, len(page), 4096):\n    page[at] = 1\ntime.sleep(60)\n",
    "memory_without_a_process": _REACH
    + "segment = libc.shmget(0, 2**20, 0o1600)\nreached('shmget', segment)\nlibc.shmctl(segment, 0, None)\n"
    "reached('memfd', call(numbers(319, 279), id(b'x'), 0))\n",
    "pipes_filled": "import os\nkept = []\nwhile True:\n    reading, writing = os.pipe()\n    kept.append(os.dup(reading))\n    os.set_blocking(writing, False)\n    os.write(writing, bytes(65536))\n",
    "power_tower": "print(9 ** 9 ** 9)\n",
    "deep_list": "x = []\nfor _ in range(10**7):\n    x = [x]\nprint(len(repr(x)))\n",
    "regular_expression": "import re\nre.match(r'(a+)+$', 'a' * 64 + 'b')\n",
    "endless_loop": "while True:\n    pass\n",
    "endless_sleep": "import time\nwhile True:\n    try:\n        time.sleep(60)\n    except BaseException:\n        pass\n",
    "endless_output": "while True:\n    print('x' * 1000)\n",
    "endless_errors": "import sys\nwhile True:\n    sys.stderr.write('x' * 1000)\n",
    "output_of_a_child": "import os\nif not os.fork():\n    while True:\n        os.write(1, b'x' * 1000)\n",
    "ignored_signals": "import signal\nfor number in signal.valid_signals():\n    try:\n        signal.signal(number, signal.SIG_IGN)\n    except (OSError, ValueError):\n        pass\nsignal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\nwhile True:\n    pass\n",
    "no_end_by_exception": "while True:\n    try:\n        while True:\n            pass\n    except BaseException:\n        pass\n",
    "end_in_finalizers": "import atexit, threading, time\natexit.register(time.sleep, 60)\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n",
    "limits_raised": _TRY
    + "import resource as r\nfor kind in (r.RLIMIT_AS, r.RLIMIT_NPROC, r.RLIMIT_FSIZE, r.RLIMIT_CPU, r.RLIMIT_NOFILE):\n"
    "    attempt(str(kind), r.setrlimit, kind, (r.RLIM_INFINITY, r.RLIM_INFINITY))\n",
    "environment_read": "import os\nprint(os.environ)\nfor number in range(1, 100):\n    try:\n        print(open(f'/proc/{number}/environ').read())\n    except OSError:\n        pass\n",
    "secret_read": _TRY
    + "for path in ('{outside}/secret', '/etc/passwd', '/etc/shadow', '/root/.ssh', '/home', '/var', '/run', '/sys'):\n"
    "    attempt(path, __import__('os').stat, path)\n",
    "repository_read": _TRY
    + "attempt('read', open, '{repository}/README.md')\nattempt('list', __import__('os').listdir, '{repository}')\n",
    "installed_packages_read": _TRY
    + "attempt('torch', __import__, 'torch')\nattempt('alp', __import__, 'alp.errors')\n",
    "processes_read": "import os\nfound = [name for name in os.listdir('/proc') if name.isdigit()]\nif found:\n    print('ESCAPED', found)\n",
    "processes_killed": "import os, signal\nfor number in (*range(1, 2), *range(3, 5000)):\n    for kind in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT):\n        try:\n            os.kill(number, kind)\n        except OSError:\n            pass\nos.kill(-1, signal.SIGKILL)\n",
    "parent_killed": "import os, signal\nprint(os.getppid())\nos.killpg(0, signal.SIGKILL)\n",
    "parent_limited": _REACH
    + "import resource\nfor number in (0, 1):\n    try:\n        resource.prlimit(number or os.getppid(), resource.RLIMIT_CPU, (1, 1))\n    except OSError:\n        pass\n",
    "written_outside": _TRY
    + "for path in ('{outside}/x', '/x', '/python/x', '/python/lib/x', '/libraries/x', '/code/x', '/dev/x', '/proc/x', '/lib/x'):\n"
    "    attempt(path, open, path, 'w')\nattempt('remove', __import__('os').remove, '/code/alp/tasks/sandbox_worker.py')\n"
    "attempt('mode', __import__('os').chmod, '/python/lib', 0o777)\n",
    "code_replaced": _TRY
    + "import os, sys\nattempt('open', open, sys.executable, 'r+b')\nattempt('rename', os.rename, '/code', '/tmp/code')\n",
    "sockets": _TRY
    + "import socket as s\nfor family in (s.AF_INET, s.AF_INET6, s.AF_NETLINK, s.AF_PACKET, s.AF_VSOCK):\n"
    "    attempt(str(family), s.socket, family, s.SOCK_DGRAM)\nattempt('connect', s.create_connection, ('1.1.1.1', 53), 2)\n",
    "names_looked_up": _TRY
    + "import socket\nattempt('name', socket.getaddrinfo, 'example.com', 80)\nattempt('local', socket.gethostbyname, 'localhost')\n",
    "web": _TRY + "import urllib.request\nattempt('web', urllib.request.urlopen, 'http://127.0.0.1:80/')\n",
    "abstract_sockets": _TRY
    + "import socket\nfor name in ('\\0/tmp/.X11-unix/X0', '\\0dbus', '/run/dbus/system_bus_socket', '/var/run/docker.sock'):\n"
    "    box = socket.socket(socket.AF_UNIX)\n    attempt(name, box.connect, name)\n",
    "ptrace": _REACH
    + "reached('attach', libc.ptrace(16, 1, 0, 0))\nreached('parent', libc.ptrace(16, os.getppid(), 0, 0))\nreached('me', libc.ptrace(0, 0, 0, 0))\n",
    "memory_of_others": _REACH
    + "reached('readv', call(numbers(310, 270), 1, 0, 0, 0, 0, 0))\nreached('writev', call(numbers(311, 271), 1, 0, 0, 0, 0, 0))\n"
    "reached('pidfd_getfd', call(numbers(438, 438), 3, 0, 0))\n",
    "namespaces": _REACH
    + "for flag in (0x80, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):\n"
    "    reached('unshare', libc.unshare(flag))\n    reached('clone', call(numbers(56, 220), flag | 17, 0, 0, 0, 0) if flag > 0x80 else None)\n"
    "reached('setns', libc.setns(0, 0))\nreached('clone3', call(435, 0, 0))\n",
    "mounts": _REACH
    + "reached('mount', libc.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None))\nreached('proc', libc.mount(b'proc', b'/proc', b'proc', 0, None))\n"
    "reached('umount', libc.umount2(b'/proc', 2))\nreached('chroot', libc.chroot(b'/tmp'))\nreached('open_tree', call(428, -100, id(b'/'), 1))\n",
    "capabilities": _TRY
    + "import os\nattempt('setuid', os.setuid, 0)\nattempt('groups', os.setgroups, [0])\nattempt('chown', os.chown, '/tmp', 0, 0)\nattempt('nice', os.nice, -5)\n",
    "kernel": _REACH
    + "for name, x86_64, aarch64 in (('bpf', 321, 280), ('perf', 298, 241), ('userfaultfd', 323, 282), ('keyctl', 250, 219),\n"
    "                              ('io_uring', 425, 425), ('module', 313, 273), ('syslog', 103, 116), ('personality', 135, 92)):\n"
    "    reached(name, call(numbers(x86_64, aarch64), 0, 0, 0, 0, 0))\n",
    "devices_made": _TRY
    + "import os, stat\nattempt('mknod', os.mknod, '/tmp/disk', 0o600 | stat.S_IFBLK, os.makedev(254, 0))\nattempt('mem', open, '/dev/mem', 'rb')\n",
    "links_out": _TRY + "import os\nos.symlink('{outside}', 'link')\nattempt('through a link', open, 'link/secret')\n"
    "attempt('hard link', os.link, '/code/alp/tasks/sandbox_worker.py', '/tmp/hard')\n"
    "os.symlink('/proc/1/root{outside}/secret', 'root')\nattempt('root', open, 'root')\n"
    "attempt('up', open, '../' * 40 + '{outside}/secret'.lstrip('/'))\n",
    "proc_tricks": _TRY
    + "for path in ('self/exe', 'self/fd/0', '1/mem', 'self/mem', 'self/root', 'sys/kernel/core_pattern', 'kcore', 'sysrq-trigger'):\n"
    "    attempt(path, open, f'/proc/{path}', 'rb')\n",
    "inherited_handles": "import os, stat\nfor number in range(3, 256):\n    try:\n        print('ESCAPED', number, os.fstat(number))\n    except OSError:\n        pass\n",
    "streams_forged": "import os\nfor number in range(3):\n    try:\n        os.write(number, b'\\x00' * 64)\n    except OSError:\n        pass\nfor number in (3, 4, 5, 64):\n    try:\n        os.write(number, b'guarded')\n    except OSError:\n        pass\nos._exit(0)\n",
    "scratch_filled": "for number in range(10**6):\n    with open(str(number), 'wb') as stream:\n        stream.write(bytes(2**20))\n",
    "scratch_of_names": "for number in range(10**6):\n    open(str(number), 'w').close()\n",
    "large_file": "with open('large', 'wb') as stream:\n    while True:\n        stream.write(bytes(2**20))\n",
    "sparse_file": "import os\nwith open('large', 'wb') as stream:\n    os.truncate('large', 2**50)\n",
    "huge_traceback": "class Long(Exception):\n    def __str__(self):\n        return 'x' * 10**8\nraise Long\n",
    "deep_traceback": "import sys\nsys.setrecursionlimit(10**5)\ndef even(n):\n    return odd(n)\ndef odd(n):\n    return even(n)\neven(0)\n",
    "no_text": "import os\nos.write(1, bytes(range(256)) * 100)\nos.write(2, b'\\xff\\xfe\\x00')\n",
    "daemon": "import os, time\nif not os.fork():\n    os.setsid()\n    if not os.fork():\n        while True:\n            time.sleep(0.01)\n            open('/tmp/mark', 'w').close()\n    os._exit(0)\n",
    "daemon_with_streams": "import os, time\nif not os.fork():\n    os.setsid()\n    time.sleep(60)\n",
    "left_behind": "import os\nopen('/dev/shm/left', 'w').write('x')\nos.mkdir('/tmp/left')\nos.chmod('/tmp/left', 0)\nos.chmod('/tmp', 0)\n",
    "crash": "import ctypes\nctypes.string_at(0)\n",
    "stack": "import sys, threading\nsys.setrecursionlimit(10**9)\ndef deeper():\n    deeper()\ndeeper()\n",
    "worker_taken_for_ours": "import gc, os, sys\nfor each in gc.get_objects():\n    if type(each).__name__ in ('Worker', 'socket'):\n        print('ESCAPED', each)\nframe = sys._getframe()\nwhile frame.f_back:\n    frame = frame.f_back\n    frame.f_globals.clear()\n",
    "library_changed": "import builtins, json, random\nbuiltins.print = None\njson.dumps = None\nrandom.random = None\n",
}
