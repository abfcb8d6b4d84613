"""What a program says is what ``python -c`` says, to the letter, whoever runs beside it and whatever ran before."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from alp.tasks.sandbox import Result, Sandbox

SAME = [
    "",
    "print(1)",
    "print('é', '\\N{SNOWMAN}')",
    "1/0",
    "x = ",
    "f'{'",
    "(" * 300,
    "  print(1)",
    "-" * 99_000 + "1",
    "print(1 is 1)",
    "print('\\d')",
    "# -*- coding: latin-1 -*-\nprint('é')",
    "import sys; print(sys.argv, sys.stdin.read(), __name__, sorted(globals()))",
    "print(input())\nprint(input())",
    "import sys; sys.exit('no')",
    "import sys; sys.exit(3)",
    "import sys; sys.exit(-1)",
    "import sys; sys.exit(10**30)",
    "raise SystemExit",
    "raise SystemExit([1])",
    "raise KeyboardInterrupt",
    "import os; os._exit(7)",
    "import os; os.abort()",
    "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "def f(): f()\nf()",
    "def f(n): return f(n + 1)\ntry: f(0)\nexcept RecursionError as e: print(e)",
    "class A:\n def __del__(self): print('bye')\na = A()",
    "import atexit; atexit.register(print, 'end'); print('x')",
    "class C:\n __repr__ = lambda s: 'C'\n def __call__(s): 1 / 0\nimport atexit; atexit.register(C())",
    "import threading, time\nthreading.Thread(target=lambda: (time.sleep(.1), print('t'))).start()\nprint('m')",
    "import threading\nt = threading.Thread(target=lambda: 1 / 0, name='t'); t.start(); t.join()",
    "import sys; sys.stdout.buffer.write(b'\\xff\\x00a')",
    "print('\\ud800')",
    "try:\n 1/0\nexcept Exception as e:\n raise ValueError('x') from e",
    "try:\n 1/0\nexcept Exception as e:\n raise ValueError('x')",
    "raise ExceptionGroup('g', [ValueError(1), TypeError(2)])",
    "import sys\nsys.excepthook = lambda *a: print('hook', a[0])\n1/0",
    "import sys\nsys.excepthook = lambda *a: 1 / 0\n[][1]",
    "import warnings; warnings.warn('w')",
    "import sys; sys.stdout.close()",
    "import sys; sys.stdout = None; print(1)",
    "import json; json.loads('{')",
    "import nosuch",
    "print(nosuch)",
    "print(open('a', 'w').write('x'))\nprint(open('b').read())",
    "async def f(): return 1\nimport asyncio; print(asyncio.run(f()))",
    "print(hash('a'), {'a', 'b', 'c'})",
    "from concurrent.futures import ProcessPoolExecutor as P\nwith P(2) as p: print(list(p.map(abs, range(-4, 0))))",
    "import subprocess as s, sys; print(s.run([sys.executable, '-c', 'print(5)'], capture_output=True, text=True).stdout)",  # noqa: E501
    "del __builtins__\nprint(1)",
    "import __main__; print(__main__.__dict__ is globals(), __doc__, __spec__, __package__)",
    "from fractions import Fraction as F; print(F(1, 3) + F(1, 6))",
    "print('x' * 200_000)",
    "import time; time.sleep(0.01)\n" + "a = 1\n" * 150_000 + "print(a)",
]
TRICKY = [  # of which no plain Python says anything that it says again
    "print(object(), lambda: 0, {int, str, float, object, len}, id(0))",
    "import random, uuid, secrets, os, tempfile\nprint(random.random(), uuid.uuid4(), secrets.token_hex(), os.urandom(4))\n"  # noqa: E501
    "print(random.Random().random(), random.SystemRandom().random(), tempfile.mktemp())",
    "import os, random\nif os.fork(): os.wait()\nprint(os.getpid(), os.getppid(), random.random())",
    "import os, socket; print(os.uname().nodename, os.getuid(), os.getcwd(), sorted(os.environ.items()))",
    "print(bytearray(10**12))",
    "while True: print(1)",
]


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox(workers=2) as box:
        yield box


def _plain(code: str, folder: Path) -> tuple[str, str, int]:
    environment = {
        "PYTHONHASHSEED": "0",
        "LC_ALL": "C.UTF-8",
        "PYTHONIOENCODING": "utf-8:strict",
        "PATH": os.environ["PATH"],
    }
    environment["LD_LIBRARY_PATH"] = f"{sys.base_prefix}/lib"
    if len(code) > 100_000:  # more than an argument may be
        (folder / "long").write_text(code, encoding="utf-8")
        code = "exec(compile(open('long').read(), '<string>', 'exec'))"
    done = subprocess.run(
        [sys._base_executable, "-c", code],  # type: ignore[attr-defined]
        input=b"first line\nsecond\n",
        capture_output=True,
        env=environment,
        cwd=folder,
    )
    stdout, stderr = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
    return stdout, stderr.replace(sys.base_prefix, "/python"), done.returncode


@pytest.mark.parametrize("code", SAME, ids=[code[:30] for code in SAME])
def test_a_program_ends_as_python_ends_it(code: str, box: Sandbox, tmp_path: Path) -> None:
    result = box.run(code, stdin="first line\nsecond\n")
    assert (result.stdout, result.stderr, result.exit_code) == _plain(code, tmp_path)
    assert result.limit is None
    assert not result.timed_out
    assert 0 < result.seconds < 60


def test_sources_that_are_no_source(box: Sandbox) -> None:
    null = box.run("print(1)\0")  # a ValueError until 3.11.3
    assert null.exit_code == 1
    assert null.stderr.endswith("Error: source code string cannot contain null bytes\n")
    surrogate = box.run("print('\ud800')")
    assert surrogate.exit_code == 1
    assert surrogate.stderr.startswith("UnicodeEncodeError: 'utf-8' codec can't encode character '\\ud800'")
    assert box.run("print(ascii(open(0, errors='surrogateescape').read()))", stdin="a\ud800é").exit_code == 0


def test_a_result_depends_on_the_program_alone(box: Sandbox) -> None:
    """Not on the order, the worker, what ran before or runs beside it, or the pool."""
    programs = [code for code in (*SAME, *TRICKY) if "sleep" not in code]
    alone = {code: box.run(code, stdin="a\nb\n", timeout=20) for code in programs}
    shuffled = programs * 3
    random.Random(1).shuffle(shuffled)
    with Sandbox(workers=1) as other, ThreadPoolExecutor(6) as threads:
        jobs = [(code, threads.submit(place.run, code, "a\nb\n", 20)) for code in shuffled for place in (box, other)]
        for code, job in jobs:
            assert job.result() == alone[code], code


def test_chosen_libraries_are_there_and_their_random_numbers_fixed() -> None:
    code = (
        "import numpy, sympy\nprint(numpy.random.rand(), sympy.factor('x**2 - 1'), numpy.random.default_rng().random())"
    )
    found: set[Result] = set()
    for _ in range(2):
        with Sandbox(workers=1, libraries=("numpy", "sympy", "mpmath")) as box:
            found |= {box.run(code, timeout=20) for _ in range(2)}
            assert box.run("import torch").exit_code == 1
    assert len(found) == 1
    assert "(x - 1)*(x + 1)" in found.pop().stdout
