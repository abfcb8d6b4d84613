"""Sandboxes of each user that can start one here; where none can be started, nothing of this folder runs, and the
closing line says so."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.sandbox.starting import SECRET, Host, host, why_not, why_not_as

LIMITS = {"least_wall_seconds": 1.0, "memory_bytes": 256 * 2**20}


@pytest.fixture(autouse=True, scope="session")
def _bubblewrap() -> None:
    if why := why_not():
        pytest.skip(f"the sandbox suite did not run: {why}")


@pytest.fixture(scope="session")
def places() -> Iterator[Path]:
    """A folder that every user may enter, with one in it that every user may write in, and a secret there."""
    folder = Path(tempfile.mkdtemp(prefix="sandbox-"))
    folder.chmod(0o755)
    outside = folder / "outside"
    outside.mkdir()
    outside.chmod(0o777)
    (outside / "secret").write_text(SECRET, encoding="utf-8")
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def hosts(places: Path, _bubblewrap: None) -> Iterator[dict[str, Host]]:
    """By the user that started it."""
    with ExitStack() as stack:
        yield {
            user: stack.enter_context(host(user, places, LIMITS)) for user in ("root", "user") if not why_not_as(user)
        }


@pytest.fixture(params=["root", "user"])
def anyone(request: pytest.FixtureRequest, hosts: dict[str, Host]) -> Host:
    """A sandbox that each user started in turn."""
    if why := why_not_as(request.param):
        pytest.skip(why)
    begun = hosts[request.param].begun
    assert "ready" in begun, begun
    return hosts[request.param]
