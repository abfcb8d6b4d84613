"""The noise budgets that docs/noise.md shows: each model is made or fetched, measured by ``alp noise``, and its table
and figure are put into the page.

    python -m benchmarks.noise_budget                  # a minute for the embedded model, 20 for SmolLM2 on one core
    python -m benchmarks.noise_budget model=embedded
    python -m benchmarks.noise_budget model=smollm2 folder=<of alp noise>   # what was measured before
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "noise.md"
BUILD = ROOT / "build" / "noise_budget"
# Of each model: the words that make it, and those that measure it.
MODELS = {
    "embedded": (["pretrain", "task.digits=3"], ["task.digits=3", "rollout.max_new_tokens=40"]),  # the quick grid's
    "smollm2": (
        ["fetch", "model=smollm2_135m"],
        [
            *("model=smollm2_135m", "model.chat=false", "task=sums_in_words", "rollout.max_new_tokens=8"),
            *("noise.problems=32", "noise.draws=6"),
        ],
    ),
}


def measure(name: str) -> Path:
    """Make the model where it is not there, and measure it; returns the folder."""
    made, words = MODELS[name]
    base, folder = BUILD / name / "base", BUILD / name / "noise"
    if not (base / "model").is_dir():
        _alp(*made, f"run.dir='{base}'")
    _alp("noise", *words, f"model.path='{base / 'model'}'", f"output='{folder}'", "replace=true")
    return folder


def _alp(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "alp.cli", *words], check=True, cwd=ROOT)


def publish(name: str, folder: Path, page: Path = PAGE) -> None:
    """Put the table between its marks into the page, and the figure beside it. Raises ValueError without the marks."""
    begin, end = f"<!-- {name}: alp noise -->\n", f"<!-- {name}: end -->\n"
    text = page.read_text(encoding="utf-8")
    if begin not in text or end not in text:
        raise ValueError(f"{page}: no place for the table of {name}: {begin.strip()} … {end.strip()}")
    before, _, rest = text.partition(begin)
    after = rest.partition(end)[2]
    table = (folder / "tables" / "budget.md").read_text(encoding="utf-8")
    page.write_text(f"{before}{begin}\n{table}\n{end}{after}", encoding="utf-8")
    shutil.copyfile(folder / "figures" / "budget.png", page.with_name(f"noise_budget_{name}.png"))


def main() -> None:
    options = dict(word.partition("=")[::2] for word in sys.argv[1:])
    names = [options["model"]] if "model" in options else list(MODELS)
    for name in names:
        publish(name, Path(options["folder"]) if "folder" in options else measure(name))
    print(f"{PAGE.relative_to(ROOT)}: tables and figures of {', '.join(names)}")


if __name__ == "__main__":
    main()
