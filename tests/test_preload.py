"""Starts of jobs: what they do not import, and that it is there all the same for whoever wants it."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
from alp.preload import load_libraries
load_libraries()
import alp.training.loop, alp.evaluation.evaluate
print(*sorted({"sklearn", "pandas", "scipy", "mlflow", "matplotlib"} & set(sys.modules)))
import scipy.stats, sklearn.metrics
"""


def test_a_job_imports_nothing_that_it_does_not_use() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
