"""TRL's side, made once. TRL is imported by the tests that use it, not at collection: it takes ten seconds. Every
module is in one xdist group, so that one worker pays."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from .trl_side import TrlSide


@pytest.fixture(scope="session")
def trl_side(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrlSide]:
    """The trainer factory, offline and quiet, on one thread."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "TRL_EXPERIMENTAL_SILENCE", "HF_HUB_DISABLE_TELEMETRY"):
            patch.setenv(name, "1")
        pytest.importorskip("trl", reason="install the extra 'parity'")
        torch.set_num_threads(1)
        yield TrlSide(tmp_path_factory.mktemp("parity"))
