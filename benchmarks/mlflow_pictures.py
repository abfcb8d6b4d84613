"""The pictures of docs/mlflow.md: a built grid as MLflow's own pages show it, taken by the tests' browser.

python -m benchmarks.mlflow_pictures smoke [results [docs]]    -> <docs>/mlflow_runs.png, mlflow_charts.png
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from alp.reporting import tracking_view
from alp.reproducibility import write_bytes
from tests.browser import Browser, program

WIDTH, HEIGHT = 1400, 1000  # CSS pixels
PATIENCE = 300.0  # seconds until the server answers, and until a page shows its runs
SETTLED = 5.0  # seconds for charts to be drawn, once their titles are there
# MLflow opens a panel of its own at the first visit and keeps whether it is open.
CLOSED = """Object.keys(localStorage).filter(key => key.includes("assistant.panelOpen"))
  .forEach(key => localStorage.setItem(key, "false"))"""


def main(words: list[str]) -> int:
    """Take both pictures; returns the exit code."""
    if not 1 <= len(words) <= 3:
        print(__doc__, file=sys.stderr)
        return 2
    results, pictures = map(Path, (*words[1:], *("results", "docs")[len(words) - 1 :]))
    if program() is None:
        print("mlflow_pictures: no browser on this machine: apt-get install chromium", file=sys.stderr)
        return 2
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = f"http://127.0.0.1:{port}"
    pages = _pages(words[0], results / "mlflow.db", server)
    if pages is None:
        print(f"mlflow_pictures: {results / 'mlflow.db'} has no grid {words[0]}", file=sys.stderr)
        return 2
    process = _serve(results.resolve(), port)
    try:
        _until(lambda: _answers(server), "the server does not answer")
        with tempfile.TemporaryDirectory() as profile, Browser(Path(profile)) as browser:
            _show(browser, pages[0], "/seed")
            browser.value(CLOSED)
            for name, address, shown in (("runs", pages[0], "/seed"), ("charts", pages[1], "reward")):
                _show(browser, address, shown)
                write_bytes(pictures / f"mlflow_{name}.png", browser.screenshot())
    finally:
        process.terminate()
        process.wait()
    return 0


def _pages(grid: str, database: Path, server: str) -> tuple[str, str] | None:
    """The addresses of a grid's runs, as a list and as charts, as ``make ui`` prints them."""
    lines = list(tracking_view.addresses(database, server))
    for line, below in pairwise(lines):
        if line.startswith(f"{grid}: "):
            return line.removeprefix(f"{grid}: "), below.split()[0]
    return None


def _serve(results: Path, port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    store = ["--backend-store-uri", f"sqlite:///{results}/mlflow.db"]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return subprocess.Popen(
        [*command, *store, "--artifacts-destination", f"{results}/mlartifacts"],
        env=os.environ | quiet,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=results,
    )


def _answers(server: str) -> bool:
    try:
        with urllib.request.urlopen(f"{server}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _show(browser: Browser, address: str, words: str) -> None:
    """Load a page anew, whatever it differs in from the last one, and wait until it shows the words."""
    for place in ("about:blank", address):
        browser.open(place, width=WIDTH, height=HEIGHT)
    _until(lambda: words in browser.value("document.body.innerText"), f"nothing of {words} at {address}")
    time.sleep(SETTLED)


def _until(true: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{otherwise} within {PATIENCE:.0f} s")
        time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
