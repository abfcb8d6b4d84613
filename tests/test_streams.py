"""Standard streams that are closed, broken or full: the exit code is the usual one, and nothing lands in a file it was
not meant for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TINY_TASK

ALP = f"{sys.executable} -m alp.cli"
PREPARE = " ".join(TINY_TASK)


def _shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, capture_output=True, text=True, encoding="utf-8", env=os.environ
    )


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_daemon_s_job_writes_what_any_job_writes(closed: str, tmp_path: Path) -> None:
    whole, found = tmp_path / "whole", tmp_path / "found"
    if closed == ">&-":
        assert _shell(f"{ALP} prepare {PREPARE} run.dir=whole", tmp_path).returncode == 0
        reference = {path.name: path.read_bytes() for path in whole.iterdir() if path.is_file()}
    done = _shell(f"{ALP} prepare {PREPARE} run.dir=found {closed}", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    names = ("train.jsonl", "validation.jsonl", "test.jsonl", "summary.json", "leakage.json", "leakage.md")
    for name in names:
        assert (found / name).read_text(encoding="utf-8")[:1] in "{|", f"{name} begins with what was meant for a stream"
    if closed == ">&-":
        assert {path.name: path.read_bytes() for path in found.iterdir() if path.is_file()} == reference


@pytest.mark.parametrize("streams", [">&- 2>&-", "| head -0; exit ${PIPESTATUS[0]}", "> /dev/full"])
@pytest.mark.parametrize(("words", "code"), [("--help", 0), ("trian", 2), ("verify /nowhere", 2)])
def test_the_exit_code_is_the_usual_one(words: str, code: int, streams: str, tmp_path: Path) -> None:
    done = _shell(f"{ALP} {words} {streams}", tmp_path)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_processes_started_from_there_have_streams_too(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys\nfrom alp.lifetime import hold_standard_streams\nhold_standard_streams()\n"
        "child = 'import os; [os.fstat(handle) for handle in range(3)]'\n"
        "with open('mine', 'w') as stream:\n    assert stream.fileno() > 2\n"
        "sys.exit(subprocess.run([sys.executable, '-c', child]).returncode)"
    )
    assert (
        _shell(
            f'{sys.executable} -c "$JOB" <&- >&- 2>&-'.replace("$JOB", script.replace('"', '\\"')), tmp_path
        ).returncode
        == 0
    )
    assert (tmp_path / "mine").read_bytes() == b""
