"""What a user types: every mistake is one line with the nearest choice, exit code 2, before any compute."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from alp import __version__, presets
from alp.cli import main
from alp.configuration import compose
from alp.configuration import grid as grids
from alp.policy import losses
from alp.verbs import VERBS

FAULTS = [
    (["train", "method=seq_apl"], "unknown method 'seq_apl'; did you mean 'seq_alp'?"),
    (["trian"], "unknown verb 'trian'; did you mean 'train'?"),
    (["train", "task=arithmetics"], "unknown task 'arithmetics'; did you mean 'arithmetic'?"),
    (["train", "model=tiny"], "unknown model 'tiny'; choose from arithmetic_tiny"),
    (["train", "trainer.step=3"], "unknown key 'trainer.step'; did you mean 'trainer.steps'?"),
    (["train", "steps=3"], "unknown key 'steps'; did you mean 'trainer.steps'?"),
    (["train", "evaluation.samples=3"], "unknown key 'evaluation.samples'"),
    (["train", "trainer.steps=many"], "trainer.steps: Input should be a valid integer, got 'many'"),
    (["train", "trainer.steps=2.5"], "trainer.steps: Input should be a valid integer, got 2.5"),
    (["train", "trainer.prompts=0"], "trainer.prompts: Input should be greater than 0, got 0"),
    (["train", "trainer.prompts=-8"], "trainer.prompts: Input should be greater than 0, got -8"),
    (["train", "trainer.samples=1"], "trainer.samples: Input should be greater than or equal to 2, got 1"),
    (
        ["train", "trainer.updates_per_batch=7"],
        "prompts = 48 is not divisible by updates_per_batch = 7; nearest that is: 6",
    ),
    (
        ["train", "trainer.micro_batch=8", "trainer.micro_tokens=4096"],
        "micro_batch = 8 and micro_tokens = 4096: one of them is null",
    ),
    (
        ["train", "method=grpo", "trainer.old_log_probs=false"],
        "trainer.old_log_probs = false does not go with method 'grpo', whose denominator is 'old'",
    ),
    (["train", "rollout.dtype=bf16"], "rollout.dtype: 'bf16' is no valid choice; did you mean 'bfloat16'?"),
    (["train", "rollout.top_p=0.9"], "need top_p=1.0 and top_k=0"),
    (["train", "rollout.weight_noise=-1"], "rollout.weight_noise: Input should be greater than or equal to 0"),
    (["train", "method=token_alp", "method.perturbation.layers=erly"], "layers: unknown 'erly'; did you mean 'early'?"),
    (["train", "method=token_alp", "method.perturbation.std=3.0"], "std = 3.0 lies outside [1e-08, 1.0]"),
    (
        ["train", "method=grpo", "method.perturbation.std=0.1"],
        "method.perturbation is null here: to set method.perturbation.std, give all of it",
    ),
    (["train", "method=grpo", "variant=sigma0"], "method 'grpo' has no perturbation: choose token_alp or seq_alp"),
    (["train", "method=token_alp", "variant=sigma_0"], "unknown variant 'sigma_0'; did you mean 'sigma0'?"),
    (
        ["train", "method.corrections=[{kind: truncate}]"],
        "kind 'truncate' needs an upper bound",
    ),
    (
        ["train", "method=token_mis", "method.corrections.0.when=negative"],
        "method.corrections.0: kind: 'mask' takes tokens out of the normaliser, which is counted before when 'negative'"
        " is known: use mask_keep_denominator",
    ),
    (
        ["train", "method=token_mis", "method.corrections.0.kind=msk"],
        "kind: 'msk' is no valid choice; did you mean 'mask'?",
    ),
    (
        ["train", "method=token_mis", "method.corrections.0.uper=2"],
        "unknown key 'method.corrections.0.uper'; did",
    ),
    (["train", "method.loss_form=clp"], "loss_form: unknown 'clp'; did you mean 'clip'?"),
    (["train", "method=seq_mis", "method.denominator=rollout"], "would correct twice"),
    (["train", "method.level=sequences"], "method.level: 'sequences' is no valid choice; did you mean 'sequence'?"),
    (["train", "method.clip_low=1.5"], "method.clip_low: Input should be less than or equal to 1"),
    (["train", "trainer.steps=1,2"], "names several values: one run takes one"),
    (["train", "trainer.lr='${trainer.lrr}'"], "Interpolation key 'trainer.lrr' not found"),
    (["train", "trainer.kl=inf"], "trainer.kl: Input should be a finite number"),
    (["train", "task.digits=3", "task.train=900"], "max_new_tokens = 24 cuts worked 3-digit sums (31 tokens)"),
    (["train", "task.digits=4"], "task.digits: Input should be less than or equal to 3"),
    (["train", "trainer.steps"], "'trainer.steps' is not an override: write key=value"),
    (["train", "+trainer.more=1"], "adds or deletes a key"),
    (["train", "--config=x"], "unknown option '--config=x'; did you mean '--cfg'?"),
    (["train"], "model.path: no model given"),
    (
        ["train", "model.path=/nowhere/at/all"],
        "no model in /nowhere/at/all (no config.json); the nearest folder that exists is /",
    ),
    (["evaluate", "evaluation.set=tets"], "evaluation.set: the task has no set 'tets'; did you mean 'test'?"),
    (["prepare", "task.train=9999"], "but 2-digit sums give only 5050"),
    (["pretrain", "model.hidden=32"], "hidden = 32 must be a multiple of twice heads = 3"),
    (["aggregate", "grid=quik"], "unknown grid 'quik'; did you mean 'quick'?"),
    (["aggregate", "grid=nothing.yaml"], "no grid file at nothing.yaml"),
    (["manifest", "grid=quik"], "unknown grid 'quik'; did you mean 'quick'?"),
    (["verify"], "verify: give the manifest and perhaps the folder to compare"),
    (
        ["verify", "nothing/manifest.json"],
        "verify: there is no nothing/manifest.json; a grid's manifest is results/<grid>/manifest.json",
    ),
    (["verify", "pyproject.toml"], "verify: pyproject.toml is no manifest of format 1"),
    (
        ["verify", "docs"],
        "verify: docs is a folder: name its manifest.json, or beside a folder of references the build",
    ),
    (["report", "reference=x"], "report: unknown key 'reference'"),
    (["diagnose", "nothing here.npz"], "diagnose: nothing here.npz: no file nothing here.npz"),
    (["track", "grid=smoke", "results=nothing"], "seed0/config.yaml: build it with 'snakemake --cores 2 --config grid"),
    (["methods", "grpo"], "methods: takes no arguments, got 'grpo'"),
    (["plan", "quik"], "unknown grid 'quik'; did you mean 'quick'?"),
    (["report", "quick", "smoke"], "report: one grid at a time, not 2: 'quick', 'smoke'"),
    (
        ["demo", "threads=2"],
        "demo: takes output and replace alone, not 'threads=2'; a dump of your own: alp diagnose <file>",
    ),
    (["help", "plam"], "unknown verb 'plam'; did you mean 'plan'?"),
    (["TRAIN"], "unknown verb 'TRAIN'; did you mean 'train'?"),
    (["hepl"], "unknown verb 'hepl'; did you mean 'help'?"),
    (["--verison"], "unknown option '--verison'; did you mean '--version'?"),
]


@pytest.mark.parametrize(("words", "message"), FAULTS, ids=[" ".join(words) for words, _ in FAULTS])
def test_fault_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    verb_takes_dir = words[0] in ("prepare", "pretrain", "train", "evaluate")
    extra = (
        [f"run.dir='{tmp_path}/out'"]
        if verb_takes_dir and not any(word.startswith(("-", "+")) for word in words)
        else []
    )
    assert main([*words, *extra]) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("alp: error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in captured.err
    assert not (tmp_path / "out").exists(), "nothing may be computed or written"


def test_band_outside_the_model_is_refused_before_training(
    base_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "train",
        "method=token_alp",
        "method.perturbation.layers='1:9'",
        f"model.path='{base_model}'",
        f"run.dir='{tmp_path}/run'",
    ]
    assert main(words) == 2
    assert (
        "method.perturbation.layers: band 1:9 is empty or outside the model's 3 layers (0:3)" in capsys.readouterr().err
    )
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_missing_device_is_refused(base_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        return
    assert main(["train", "trainer.device=cuda", f"model.path='{base_model}'", f"run.dir='{tmp_path}/run'"]) == 2
    assert "torch sees no GPU here; did you mean 'cpu'" in capsys.readouterr().err


def test_process_exits_with_2_and_no_traceback() -> None:
    done = subprocess.run([sys.executable, "-m", "alp.cli", "train", "method=seq_apl"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "alp: error: train: unknown method 'seq_apl'; did you mean 'seq_alp'?\n"


HEAVY = ("hydra", "matplotlib", "mlflow", "numpy", "pandas", "pydantic", "sympy", "torch", "transformers")


def _refused(*words: str) -> tuple[str, set[str]]:
    """What a job says that is refused, and which heavy libraries it had imported by then."""
    script = (
        "import sys; from alp.cli import main\ncode = main(sys.argv[2:])\n"
        "print(*(name for name in sys.argv[1].split(',') if name in sys.modules)); sys.exit(code)"
    )
    command = [sys.executable, "-c", script, ",".join(HEAVY), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    return done.stderr.splitlines()[-1], set(done.stdout.split())


@pytest.fixture
def model_files(tmp_path: Path) -> Path:
    """A folder that is a model as far as the headers of its files tell."""
    from safetensors.numpy import save_file

    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"num_hidden_layers": 1}')
    (folder / "tokenizer_config.json").write_text("{}")
    save_file({"weight": np.zeros(2, dtype=np.float32)}, folder / "model.safetensors")
    return folder


def test_refusals_wait_for_no_heavy_import(tmp_path: Path, model_files: Path) -> None:
    said, imported = _refused("train", "method=seq_apl")
    assert said == "alp: error: train: unknown method 'seq_apl'; did you mean 'seq_alp'?"
    assert imported == set()
    missing = {f"model.path='{tmp_path}/none'": "model.path: no model in", "task.data=none": "task.data: no none/"}
    for verb in ("train", "evaluate", "noise"):
        where = "output" if verb == "noise" else "run.dir"
        for word, message in missing.items():
            said, imported = _refused(verb, f"model.path='{model_files}'", f"{where}='{tmp_path}/run'", word)
            assert message in said
            assert imported <= {"hydra", "numpy", "pydantic"}
    said, imported = _refused(
        "train", "method=token_alp", "method.perturbation.layers='1:9'", f"model.path='{model_files}'"
    )
    assert "method.perturbation.layers: band 1:9 is empty or outside the model's one layer (0:1)" in said
    assert imported <= {"hydra", "numpy", "pydantic"}


def test_planning_verbs_import_no_torch() -> None:
    script = (
        "import sys; from alp.cli import main; main(['train', '--cfg', 'job']); import alp.configuration.grid; assert"
        " 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_help_version_and_cfg(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"alp {__version__}\n"
    for verb in VERBS:
        assert main([verb, "--help"]) == 0
        assert f"alp {verb}" in capsys.readouterr().out
    assert main(["train", "method=seq_alp", "trainer.seed=7", "--cfg", "job"]) == 0
    shown = capsys.readouterr().out
    assert "numerator: perturbed" in shown
    assert "seed: 7" in shown


@pytest.mark.parametrize("verb", [name for name, verb in VERBS.items() if verb.takes == "grid"])
def test_a_grid_is_read_once(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    load = grids.load
    monkeypatch.setattr(grids, "load", lambda name: read.append(name) or load(name))
    assert main([verb, "grid=smoke", f"results='{tmp_path}'"]) == 2  # nothing was built there
    assert read == ["smoke"]


def test_every_verb_has_a_function_and_a_configuration() -> None:
    for name, verb in VERBS.items():
        module, _, function = verb.function.partition(":")
        assert callable(getattr(importlib.import_module(module), function)), name
        assert verb.takes == "words" or compose.resolve(name)
    assert (
        set(compose.SCHEMAS) == set(compose.ENTRIES) == {name for name, verb in VERBS.items() if verb.takes != "words"}
    )


def test_methods_prints_every_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    headings = [lines.index(heading) for heading in (*presets.GROUPS, presets.FORMULAS)]
    assert headings == sorted(headings)
    rows = [line.split()[0] for line in lines[: headings[-1]] if line and line not in presets.GROUPS]
    assert sorted(name for name in rows if name != "method") == compose.choices("method")
    assert rows.count("method") == len(presets.GROUPS)
    formulas = dict(line.split(maxsplit=1) for line in lines[headings[-1] + 1 :])
    assert {"clip"} <= set(formulas) <= set(losses.names())
