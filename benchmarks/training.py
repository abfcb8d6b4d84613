"""Sampled tokens a second of whole training steps: ours and TRL's GRPOTrainer, on the same model and problems.

    python -m benchmarks.training                      the embedded model, one thread (5 minutes)
    python -m benchmarks.training --size smollm2 --model <folder>    SmolLM2's size (20 minutes)
    python -m benchmarks.training --devices 2          ours alone, on 1 and on 2 processes of this machine's CPU

Both sides sample the same number of responses to the same prompts (their worked examples included), up to the same
length, grade them with the same task and take the same number of optimizer steps of the same number of sequences on
them. They take turns, each round in a process of its own; a step counts from the second on. A ratio is the median over
rounds of two speeds of the same round: machines are noisy, ratios less so, and those of processor time least. On a GPU,
ours also gives its model FLOPs utilisation against the speed of a large matrix product in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Size:
    """What one step does, and the words that make the task and the model."""

    prompts: int
    samples: int
    updates: int
    length: int  # most tokens of a response
    steps: int  # that are counted
    words: tuple[str, ...]


SMOLLM2 = ("task=sums_in_words", "model=smollm2_135m", "model.chat=false", "trainer.lr=1e-6")
SIZES = {"embedded": Size(48, 8, 8, 24, 4, ()), "smollm2": Size(8, 8, 2, 16, 2, SMOLLM2)}


def _words(size: Size, model: Path, folder: Path) -> list[str]:
    return [
        *size.words,
        f"model.path='{model}'",
        f"run.dir='{folder}'",
        *("run.tracking=null", "method=grpo", "trainer.validate_every=0", "trainer.probe_every=0"),
        *("trainer.checkpoint_every=0", "trainer.threads=1", "rollout.dtype=float32", "validation.dtype=float32"),
        f"trainer.prompts={size.prompts}",
        f"trainer.samples={size.samples}",
        f"trainer.updates_per_batch={size.updates}",
        f"trainer.steps={size.steps + 1}",
        f"rollout.max_new_tokens={size.length}",
    ]


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _between(first: tuple[float, float], last: tuple[float, float]) -> dict[str, float]:
    """Seconds by the clock, and of this process on the processor, which other work on the machine moves less."""
    return {"seconds": last[0] - first[0], "processor": last[1] - first[1]}


def ours(size: Size, model: Path, folder: Path) -> dict[str, Any]:
    """Tokens and seconds of the counted steps."""
    from alp.configuration import compose
    from alp.training.job import Job
    from alp.training.loop import run

    config = compose.load("train", _words(size, model, folder))
    clock = [_now()]
    job = Job(config, folder)
    run(job, lambda: clock.append(_now()))
    job.close()
    timings = [json.loads(line) for line in (folder / "timings.jsonl").read_text(encoding="utf-8").splitlines()]
    seconds = {name: sum(line.get(name, 0.0) for line in timings[1:]) for name in timings[0] if "/" in name}
    tokens = sum(line["response_tokens"] for line in timings[1:])
    result = {"tokens": tokens, **_between(clock[1], clock[-1]), "parts": seconds}
    return result | _utilisation(job, tokens, result["seconds"])


def _utilisation(job: Any, tokens: int, seconds: float) -> dict[str, float]:
    """On a GPU: six FLOPs a parameter and token of an update and two of the scoring, against what a product reaches."""
    import torch

    if job.device.type != "cuda":
        return {}
    matrix = torch.randn(8192, 8192, device=job.device, dtype=torch.bfloat16)
    for _ in range(3):
        matrix @ matrix
    torch.cuda.synchronize()
    clock = time.perf_counter()
    for _ in range(10):
        matrix @ matrix
    torch.cuda.synchronize()
    peak = 10 * 2 * 8192**3 / (time.perf_counter() - clock)
    parameters = sum(value.numel() for value in job.model.parameters())
    return {"peak_flops": peak, "mfu": 8.0 * parameters * tokens / seconds / peak}


def theirs(size: Size, model: Path, folder: Path) -> dict[str, Any]:
    """The same of TRL."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from alp.configuration import compose
    from alp.models import load_tokenizer
    from alp.rollout.prompts import prompt_text
    from alp.tasks.catalogue import load_task
    from alp.tasks.task import select

    torch.set_num_threads(1)
    config = compose.load("train", _words(size, model, folder))
    task, tokenizer = load_task(config.task), load_tokenizer(model)
    chosen = [
        problem
        for step in range(size.steps + 1)
        for problem in select(task.problems("train"), size.prompts, config.trainer.seed, step)
    ]
    counted: list[int] = []

    def reward(completions: list[str], completion_ids: list[list[int]], number: list[int], **_: Any) -> list[float]:
        counted.append(sum(map(len, completion_ids)))
        return [task.grade(chosen[index], text) for index, text in zip(number, completions, strict=True)]

    clock: list[tuple[float, float]] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.append(_now())

    per_update = size.prompts * size.samples // size.updates
    arguments = GRPOConfig(
        output_dir=str(folder / "trl"),
        use_cpu=not torch.cuda.is_available(),
        bf16=torch.cuda.is_available(),
        per_device_train_batch_size=per_update,
        steps_per_generation=size.updates,
        gradient_accumulation_steps=1,
        num_generations=size.samples,
        max_completion_length=size.length,
        max_steps=size.updates * (size.steps + 1),
        learning_rate=config.trainer.lr,
        beta=0.0,
        temperature=config.rollout.temperature,
        gradient_checkpointing=False,
        shuffle_dataset=False,
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=str(model),
        reward_funcs=reward,
        args=arguments,
        train_dataset=Dataset.from_list(
            [
                {"prompt": prompt_text(tokenizer, task, problem, config.model), "number": index}
                for index, problem in enumerate(chosen)
            ]
        ),
        processing_class=tokenizer,
        callbacks=[Clock()],
    )
    trainer.train()
    return {"tokens": sum(counted[1:]), **_between(clock[size.updates - 1], clock[-1])}


def _made(folder: Path) -> Path:
    """The embedded base model, taught for a while: responses end as they do in training."""
    words = ["pretrain.steps=300", f"run.dir={folder}"]
    subprocess.run([sys.executable, "-m", "alp.cli", "pretrain", *words], check=True, cwd=ROOT, capture_output=True)
    return folder / "model"


def _round(side: str, options: argparse.Namespace, model: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        words = ["--side", side, "--size", options.size, "--model", str(model), "--folder", folder]
        one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        made = subprocess.run(
            [sys.executable, "-m", "benchmarks.training", *words],
            check=True,
            cwd=ROOT,
            env=os.environ | one,
            stdout=subprocess.PIPE,
            text=True,
        )
    result: dict[str, Any] = json.loads(made.stdout.splitlines()[-1])
    return result | {"speed": result["tokens"] / result["seconds"]}


def scaling(size: Size, model: Path, devices: list[int], rounds: int) -> None:
    """Print seconds of a step, whole and by part, for each number of devices, which take turns: medians of rounds."""
    taken: dict[int, list[dict[str, float]]] = {number: [] for number in devices}
    for _ in range(rounds):
        for number in devices:
            with tempfile.TemporaryDirectory() as folder:
                words = [*_words(size, model, Path(folder)), f"trainer.devices={number}", "trainer.device=cpu"]
                command = [sys.executable, "-m", "alp.cli", "train", *words]
                subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
                lines = [json.loads(line) for line in (Path(folder) / "timings.jsonl").read_text().splitlines()]
            parts = {key.partition("/")[2]: 0.0 for key in lines[1] if key.startswith("seconds/")}
            for line in lines[1:]:
                parts |= {key: parts[key] + line[f"seconds/{key}"] / size.steps for key in parts}
            taken[number].append(parts | {"whole": sum(parts.values())})
    names = list(taken[devices[0]][0])
    medians = {n: {key: statistics.median(one[key] for one in taken[n]) for key in names} for n in devices}
    print("| devices | " + " | ".join(f"{name}, s a step" for name in names) + " | speed |")
    print("| --- |" + " ---: |" * (len(names) + 1))
    for number, parts in medians.items():
        cells = " | ".join(f"{parts[name]:.2f}" for name in names)
        print(f"| {number} | {cells} | {medians[devices[0]]['whole'] / parts['whole']:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="embedded")
    parser.add_argument("--model", type=Path, help="folder of the model; the embedded one is taught")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--devices", type=int, help="ours alone, on 1 and on so many processes of a CPU")
    parser.add_argument("--out", type=Path, help="a JSON file of all rounds")
    parser.add_argument("--side", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        run = {"ours": ours, "theirs": theirs}[options.side]
        print(json.dumps(run(SIZES[options.size], options.model, options.folder)))
        return
    if options.model is None and options.size != "embedded":
        parser.error(f"--size {options.size} needs --model <folder of its weights>")
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or _made(Path(folder))
        if options.devices is not None:
            scaling(SIZES[options.size], model, sorted({1, options.devices}), options.rounds)
            return
        rounds = [{side: _round(side, options, model) for side in ("ours", "theirs")} for _ in range(options.rounds)]
    steps = SIZES[options.size].steps
    print(
        "| round | ours, tokens/s | TRL, tokens/s | ratio | ours, s a step | TRL, s a step | ours, processor s | TRL |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for number, pair in enumerate(rounds, start=1):
        mine, other = pair["ours"], pair["theirs"]
        print(
            f"| {number} | {mine['speed']:.0f} | {other['speed']:.0f} | {mine['speed'] / other['speed']:.2f} |"
            f" {mine['seconds'] / steps:.2f} | {other['seconds'] / steps:.2f} |"
            f" {mine['processor'] / steps:.2f} | {other['processor'] / steps:.2f} |"
        )
    ratios = {name: [pair["ours"][name] / pair["theirs"][name] for pair in rounds] for name in ("speed", "processor")}
    a_step = statistics.median(1 / ratio for ratio in ratios["processor"])
    print(
        f"median ratio: {statistics.median(ratios['speed']):.2f} of tokens/s by the clock, {a_step:.2f} of a step by"
        " processor time"
    )
    parts = rounds[-1]["ours"]["parts"]
    print(
        "ours, last round, seconds: "
        + ", ".join(f"{name.partition('/')[2]} {value:.1f}" for name, value in parts.items())
    )
    if "mfu" in rounds[-1]["ours"]:
        print(f"MFU {statistics.median(pair['ours']['mfu'] for pair in rounds):.3f}")
    if options.out:
        options.out.write_text(json.dumps(rounds, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
