"""The Slurm that the tests of this folder submit to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Cluster, Programs


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    programs = Programs()
    if programs.missing:
        pytest.skip(f"no Slurm here (missing: {', '.join(programs.missing)}); `make slurm` gets one")
    with Cluster(programs) as running:
        yield running
