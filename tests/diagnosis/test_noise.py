"""``alp noise`` on a taught model: what it writes, that it repeats, what it says of an exact engine, and what it
refuses."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from alp.cli import main
from alp.configuration import compose
from alp.diagnosis import noise_page
from alp.diagnosis.noise_page import Measured, findings, table
from alp.evaluation.evaluate import Sampler
from alp.models import load_model
from alp.policy.budget import Budget, Source, Spread
from alp.rendering import plots
from alp.rendering.tables import to_csv, to_latex
from benchmarks import noise_budget
from tests.conftest import TINY_TASK
from tests.reporting.conftest import bytes_below
from tests.reporting.test_figures import assert_legible

SMALL = [*TINY_TASK, "noise.problems=6", "noise.draws=3", "noise.batch_size=4", "noise.device=cpu"]


def words(model: Path, output: Path, *more: str) -> list[str]:
    return ["noise", *SMALL, f"model.path='{model}'", f"output='{output}'", *more]


@pytest.fixture(scope="module")
def made(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("noise") / "out"
    assert main(words(base_model, folder)) == 0
    return folder


def record_of(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "budget.json").read_text(encoding="utf-8"))
    return record


def test_the_folder_holds_what_the_page_says(made: Path) -> None:
    assert bytes_below(made).keys() == {
        *("budget.json", "report.html", "figures/budget.svg", "figures/budget.png"),
        *(f"tables/budget{ending}" for ending in (".csv", ".md", ".tex")),
    }
    record = record_of(made)
    assert [source["layers"] for source in record["sources"]] == [[0], [1], [2]]
    assert (record["sequences"], record["draws"], record["engine"]["label"]) == (6, 3, "HF bf16")
    for level in ("token", "sequence"):
        parts = [source["variance"][level] for source in record["sources"]]
        assert all(part > 0 for part in parts)
        assert [source["share"][level] for source in record["sources"]] == pytest.approx(
            [part / math.fsum(parts) for part in parts]
        )
        whole = record["together"]["variance"][level]
        assert record["additivity"][level] == pytest.approx(whole / math.fsum(parts))
    for source in record["sources"]:
        assert source["realised_rms"] == pytest.approx(0.02, rel=0.05)
    rows = list(csv.DictReader(io.StringIO((made / "tables" / "budget.csv").read_text(encoding="utf-8"))))
    assert [row["layer"] for row in rows] == ["0", "1", "2", "sum of the layers", "all together", "mismatch π_old/μ"]
    assert float(rows[0]["token_variance"]) == pytest.approx(record["sources"][0]["variance"]["token"], rel=1e-4)


def test_the_mismatch_is_that_of_the_same_tokens(made: Path, base_model: Path, tmp_path: Path) -> None:
    """π_old from a forward of each response by itself, μ as the engine returned it."""
    config = compose.load("noise", words(base_model, tmp_path / "out")[1:])
    sampler = Sampler(config.sampling, log=tmp_path / "log")
    trajectories = sampler.trajectories(sampler.problems[:6], first=0)
    sampler.close()
    model, tokens, sums = load_model(base_model, torch.device("cpu")), [], []
    for item in trajectories:
        ids, start = torch.tensor([[*item.prompt_ids, *item.response_ids]]), len(item.prompt_ids)
        with torch.no_grad():
            values = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
        old = values.gather(-1, ids[0, 1:, None])[start - 1 :, 0]
        gaps = (old - torch.tensor(item.rollout_log_probs, dtype=torch.float64)).tolist()
        tokens += gaps
        sums.append(math.fsum(gaps))
    variance = record_of(made)["mismatch"]["variance"]
    assert len(tokens) == record_of(made)["tokens"]
    for name, values in (("token", tokens), ("sequence", sums)):
        assert variance[name] == pytest.approx(float(torch.tensor(values).var(correction=0)), rel=0.05)


def test_the_same_words_give_the_same_bytes(made: Path, base_model: Path, tmp_path: Path) -> None:
    assert main(words(base_model, tmp_path / "out")) == 0
    assert bytes_below(tmp_path / "out") == bytes_below(made)
    assert main(words(base_model, made)) == 0, "an equal job may be run again in its place"
    assert bytes_below(tmp_path / "out") == bytes_below(made)


def test_another_budget_gives_way_only_where_that_is_said(
    made: Path, base_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = bytes_below(made)
    assert main(words(base_model, made, "method.perturbation.std=0.01")) == 2
    assert "output=<another folder>" in capsys.readouterr().err
    assert bytes_below(made) == before


def test_an_exact_engine_is_shown_as_one(base_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(base_model, tmp_path / "out", "rollout.dtype=float32")) == 0
    said = capsys.readouterr().out
    assert "no mismatch to hold it against" in said
    assert "none beyond rounding" not in said
    assert record_of(tmp_path / "out")["mismatch"]["variance"]["token"] < 1e-10
    with (tmp_path / "out" / "tables" / "budget.csv").open(encoding="utf-8") as stream:
        assert all(row["token_times_mismatch"] == "" for row in csv.DictReader(stream))


def test_weight_noise_widens_the_mismatch(made: Path, base_model: Path, tmp_path: Path) -> None:
    assert main(words(base_model, tmp_path / "out", "rollout.weight_noise=0.2")) == 0
    wide, plain = (record_of(folder)["mismatch"]["variance"]["token"] for folder in (tmp_path / "out", made))
    assert wide > 4 * plain


@pytest.mark.parametrize(("layers", "names"), [("'1:3'", [[1], [2]]), ("logits", [["logits"]]), ("[2]", [[2]])])
def test_of_the_layers_that_the_method_names(layers: str, names: list[Any], base_model: Path, tmp_path: Path) -> None:
    assert main(words(base_model, tmp_path / "out", f"method.perturbation.layers={layers}")) == 0
    assert [source["layers"] for source in record_of(tmp_path / "out")["sources"]] == names


FAULTS = [
    (["method=grpo"], "noise: configuration: method 'grpo' has no perturbation: choose token_alp or seq_alp"),
    (["method.perturbation.std=0"], "noise: configuration: method.perturbation.std = 0 switches the noise off"),
    (
        ["method.perturbation.layers='1:9'"],
        "noise: method.perturbation.layers: band 1:9 is empty or outside the model's 3",
    ),
    (["method.perturbation.layers=erly"], "layers: unknown 'erly'; did you mean 'early'?"),
    (["model.path=/nowhere/at/all"], "no model in /nowhere/at/all (no config.json); the nearest folder that exists"),
    (["model.path=null"], "model.path: no model given"),
    (["noise.set=tets"], "noise.set: the task has no set 'tets'; did you mean 'test'?"),
    (["noise.draws=1"], "noise.draws: Input should be greater than or equal to 2, got 1"),
    (["rollout.temperature=0"], "temperature = 0 is greedy decoding, which has no behaviour policy"),
    (["rollout.max_new_tokens=3"], "max_new_tokens = 3 cuts worked 1-digit sums"),
    (["noise.drws=3"], "unknown key 'noise.drws'; did you mean 'noise.draws'?"),
    (["trainer.lr=1"], "unknown key 'trainer.lr'"),
]


@pytest.mark.parametrize(("more", "message"), FAULTS, ids=[" ".join(more) for more, _ in FAULTS])
def test_a_fault_is_one_line_before_anything_is_written(
    more: list[str], message: str, base_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(base_model, tmp_path / "out", *more)) == 2
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("alp: error: ")]
    assert message in line
    assert "Traceback" not in captured.err
    assert not captured.out
    assert not (tmp_path / "out").exists()


def test_noise_that_ends_in_no_number_is_refused(
    base_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loud = ["method.perturbation.std=1e38", "method.perturbation.std_max=1e38"]
    assert main(words(base_model, tmp_path / "out", *loud)) == 2
    assert "no finite number: try a smaller method.perturbation.std" in capsys.readouterr().err
    assert not (tmp_path / "out" / "budget.json").exists()


def measured(variances: list[float], *, mismatch: float = 1e-5) -> Measured:
    """A fabricated budget of layers of these token variances."""

    def wide(variance: float) -> Spread:
        return Spread(variance, 10 * variance, variance / 20, variance / 2)

    sources = tuple(Source((layer,), 1.0, 0.02, wide(part)) for layer, part in enumerate(variances))
    budget = Budget(sources, wide(1.02 * math.fsum(variances)))
    gap = Spread(mismatch, 9 * mismatch)
    return Measured("m", "seq_alp", "HF bf16", {}, 0.02, 12, 32, 300, budget, gap)


def test_the_verdict_in_words() -> None:
    first, second = findings(measured([9.4e-4, 4e-5, 2e-5]))
    assert first == (
        "layer 0 makes 94 % of the variance; all layers together 10 x the mismatch's standard deviation per token"
        " (HF bf16)"
    )
    assert second.startswith("all together: standard deviation of Δ log π 0.0319 per token, 0.101 per sequence; 1.02 x")
    (lost,) = findings(measured([0.0, 0.0]))
    assert "lost in rounding" in lost
    assert "no mismatch to hold it against" in findings(measured([1e-3], mismatch=1e-13))[0]


@pytest.mark.parametrize("layers", [1, 2, 3, 12, 30, 80])
@pytest.mark.parametrize("mismatch", [1e-5, 0.0])
def test_the_figure_is_legible_of_any_depth(layers: int, mismatch: float) -> None:
    shown = measured([1e-3 * 0.6**layer for layer in range(layers)], mismatch=mismatch)
    with plots.style():
        assert_legible(noise_page.figure(shown))


def test_the_table_says_what_the_figure_draws() -> None:
    shown = measured([9.5e-4, 5e-5])
    rows = list(csv.DictReader(io.StringIO(to_csv(table(shown)))))
    assert [row["token_share"] for row in rows] == ["0.95", "0.05", "1", "1.02", ""]
    profile = shown.profile("token")
    assert list(profile.variances) == [float(row["token_variance"]) for row in rows[:2]]
    assert profile.together == pytest.approx(float(rows[3]["token_variance"]))
    assert float(rows[3]["token_times_mismatch"]) == pytest.approx(math.sqrt(1.02e-3 / 1e-5), rel=1e-5)


def test_latex_knows_every_letter() -> None:
    assert to_latex(table(measured([9.5e-4, 5e-5]))).isascii()


def test_the_page_is_given_its_tables(made: Path, tmp_path: Path) -> None:
    page = tmp_path / "noise.md"
    page.write_text("a\n<!-- embedded: alp noise -->\nearlier\n<!-- embedded: end -->\nb\n", encoding="utf-8")
    noise_budget.publish("embedded", made, page)
    text = page.read_text(encoding="utf-8")
    assert (made / "tables" / "budget.md").read_text(encoding="utf-8") in text
    assert text.startswith("a\n<!-- embedded: alp noise -->\n")
    assert text.endswith("<!-- embedded: end -->\nb\n")
    assert "earlier" not in text
    picture = (tmp_path / "noise_budget_embedded.png").read_bytes()
    assert picture == (made / "figures" / "budget.png").read_bytes()
    with pytest.raises(ValueError, match="no place for the table of smollm2"):
        noise_budget.publish("smollm2", made, page)


@pytest.mark.parametrize("name", list(noise_budget.MODELS))
def test_the_published_budgets_are_those_of_layer_0(name: str) -> None:
    """What docs/noise.md shows: with one absolute size for all layers the noise is that of the first."""
    text = noise_budget.PAGE.read_text(encoding="utf-8")
    section = text.partition(f"<!-- {name}: alp noise -->")[2].partition(f"<!-- {name}: end -->")[0]
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in section.strip().splitlines()]
    column = rows[0].index("share per token, %")
    shares = {row[0]: float(row[column]) for row in rows[2:] if row[0].isdigit()}
    assert shares["0"] >= 90
    assert sum(shares.values()) == pytest.approx(100, abs=2)
    assert noise_budget.PAGE.with_name(f"noise_budget_{name}.png").stat().st_size < 100_000
