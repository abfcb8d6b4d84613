"""Everything that needs a GPU, in one run: checks, tests, benchmarks, one JSON file (``make gpu``).

    python3 -m benchmarks.gpu --out build/gpu.json           on the GPU, at most ten minutes
    python3 -m benchmarks.gpu --device cpu                   a rehearsal at toy size: every part runs, no figure counts

Any interpreter with torch (from 2.11), transformers, hydra-core, pydantic and numpy will do, from a checkout, without
an install. A part that fails is named with its reason, the others still run; the exit code is 1 then. The file is
written after every part.

MFU is (6 N + 6 layers hidden tokens) FLOPs a token (N parameters, causal attention), whatever is computed twice, over
the speed of a large bfloat16 product of the same run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from alp import models
from alp.configuration import compose
from alp.policy import LayerwisePerturbation
from alp.policy import noise as noises
from alp.policy.streams import Normals, RowNames
from alp.rollout import registry, vllm
from alp.rollout.engine import Engine, Host, Request, Sampling
from alp.rollout.episodes import Trajectory
from alp.rollout.hf import HFEngine
from alp.training.attention import choose
from alp.training.batch import Batch, collate
from alp.training.compiled import CompiledLayers
from alp.training.forward import token_log_probs
from alp.training.head import proven_head
from alp.training.loop import train
from alp.training.masters import Masters
from alp.training.update import Updater
from benchmarks.shapes import Shape, fixed_probe, random_qwen2

TESTS = ("tests/policy/test_kernels.py", "tests/policy/test_perturbation_gradients.py", "tests/training/test_head.py")
TESTS = (*TESTS, "tests/training/test_attention.py", "tests/training/test_precision.py", "tests/rollout/test_static.py")
TESTS = (*TESTS, "tests/rollout/test_transport.py", "tests/rollout/test_vllm_gpu.py")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Size(Shape):
    """A random Qwen2, and how much of it is done."""

    tokens: int  # of a sequence
    sequences: int  # of an update
    chunk: int  # tokens whose logits are there at a time
    rollouts: tuple[int, int]  # sequences and tokens

    def model(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Any:
        """Random weights, without dropout."""
        with device:
            return random_qwen2(self, pad_token_id=0, eos_token_id=1).to(dtype).eval()


LARGE = Size(28, 1536, 8960, 12, 2, 151936, 4096, 4, 4096, (64, 128))  # Qwen2.5-1.5B
SMALL = Size(30, 576, 1536, 9, 3, 49152, 256, 4, 512, (64, 32))  # SmolLM2-135M
TOY = Size(2, 64, 96, 2, 2, 64, 32, 4, 16, (4, 4))
WIDE_TOY = Size(2, 128, 96, 2, 2, 64, 32, 4, 16, (4, 4))  # heads that vLLM has kernels for


class Run:
    """The device, the shapes, and how long there is."""

    def __init__(self, device: torch.device, seconds: float) -> None:
        self.device, self.toy = device, device.type == "cpu"
        self.large, self.small = (TOY, TOY) if self.toy else (LARGE, SMALL)
        self.end = time.monotonic() + seconds

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if not self.toy:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object]) -> float:
        """Of one call."""
        self.wait()
        clock = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - clock

    def peak_flops(self) -> float:
        """FLOPs a second of a large bfloat16 product."""
        size = 256 if self.toy else 8192
        matrix = torch.randn(size, size, device=self.device, dtype=torch.bfloat16)
        self.seconds(lambda: matrix @ matrix)
        return 2 * size**3 / min(self.seconds(lambda: matrix @ matrix) for _ in range(10))


# ---- parts -----------------------------------------------------------------------------------------------------------


def machine(run: Run) -> dict[str, Any]:
    """What it runs on."""
    name = platform.processor() if run.toy else torch.cuda.get_device_name()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {"device": name, "python": platform.python_version(), "versions": versions, "peak_flops": run.peak_flops()}


def noise(run: Run) -> dict[str, Any]:
    """Keys and normals of the device against a CPU's, and which way draws them."""
    rows = torch.arange(4096)
    here, there = (
        RowNames(7, 5, 3, torch.stack([(rows << 20).to(where), rows.to(where)])) for where in (run.device, CPU)
    )
    drawn, expected = (
        Normals(1536, len(rows), names.rows.device).draw(names.keys())[:, :1536].cpu() for names in (here, there)
    )
    gap = float((drawn - expected).abs().max())
    equal = torch.equal(here.keys().cpu(), there.keys())
    if not equal or not gap <= 1e-6:
        raise RuntimeError(f"keys equal: {equal}, normals within {gap:.3g} of a CPU's")
    kernels = noises.device_kernels(run.device)
    if kernels is None and not run.toy:
        raise RuntimeError("the noise has no Triton kernels on this device; the log says why")
    return {"normals_gap": gap, "kernel": "torch" if kernels is None else "triton"}


def log_probs(run: Run) -> dict[str, Any]:
    """Log-probs by chunks of tokens against those of whole logits, and their gradients, under autocast."""
    model, batch = run.small.model(run.device), _batch(run.small, run.device)
    head, found = proven_head(model, run.small.chunk, 0), []
    for given in (None, head):
        model.zero_grad(set_to_none=True)
        values, _ = token_log_probs(model, batch, 0.8, head=given)
        values[batch.response_mask].sum().backward()
        gradient = torch.cat([value.grad.flatten() for value in model.parameters()])
        found.append((values.detach() * batch.response_mask, gradient))
    (whole, first), (chunked, second) = found
    gap = float((whole - chunked).abs().max() / whole.abs().max())
    of_gradient = float((first - second).norm() / first.norm())
    if not gap <= 2e-2 or not of_gradient <= 2e-2:
        raise RuntimeError(f"chunks differ by {gap:.3g}, their gradient by {of_gradient:.3g}")
    return {"log_probs_gap": gap, "gradient_gap": of_gradient}


def repeatability(run: Run) -> dict[str, Any]:
    """One job of Seq-ALP at SmolLM2's size, twice: every byte of metrics and weights."""
    tokenizer = models.character_tokenizer("0123456789+=#| ")
    with tempfile.TemporaryDirectory() as folder:
        models.save_model(run.small.model(CPU), tokenizer, Path(folder) / "model")
        contents = []
        for name in ("first", "second"):
            words = [f"model.path={folder}/model", f"run.dir={folder}/{name}", "run.tracking=null", "method=seq_alp"]
            words += [f"trainer.device={run.device.type}", "trainer.steps=3", "trainer.prompts=8", "trainer.samples=4"]
            words += ["trainer.validate_every=0", "trainer.probe_every=0", "trainer.checkpoint_every=0"]
            words += [f"trainer.logits_chunk={run.small.chunk}", "trainer.deterministic_attention=true"]
            train(compose.load("train", words))
            files = ("metrics.jsonl", "model/model.safetensors")
            contents.append([(Path(folder) / name / file).read_bytes() for file in files])
        active = json.loads((Path(folder) / "first" / "active.json").read_text(encoding="utf-8"))
    if contents[0] != contents[1]:
        differing = [file for file, one, two in zip(files, *contents, strict=True) if one != two]
        raise RuntimeError(f"{', '.join(differing)} differ between two runs of one job")
    return {"identical": True, "attention_kernels": active["attention_kernels"]}


def update(run: Run) -> dict[str, Any]:
    """Seconds, memory and MFU of an update with Seq-Bypass and with Seq-ALP, with and without checkpointing, in
    float32 under autocast and with bfloat16 weights, the latter also with compiled layers."""
    choose(deterministic=True)
    peak, results = run.peak_flops(), {}
    ways = [("autocast", False), ("bfloat16", False), ("bfloat16", True)]
    if run.toy and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        del ways[-1]  # torch compiles with it on a CPU
    for precision, compiles in ways:
        for checkpointing in (True, False):
            name = f"{precision}{', compiled' * compiles}, {'with' if checkpointing else 'without'} checkpointing"
            try:
                results[name] = _updates(run, precision, checkpointing, compiles, peak)
            except torch.cuda.OutOfMemoryError:
                results[name] = {"out_of_memory": True}
            if not run.toy:
                torch.cuda.empty_cache()
    return results


def _updates(run: Run, precision: str, checkpointing: bool, compiles: bool, peak: float) -> dict[str, Any]:
    shape, updaters = run.large, {}
    model, batch = shape.model(run.device), _batch(shape, run.device)
    masters = Masters(model) if precision == "bfloat16" else None
    if checkpointing:
        models.checkpoint_layers(model)
    head = proven_head(model, shape.chunk, 0)
    compiled = CompiledLayers(model) if compiles else None
    words = [f"trainer.micro_tokens={2 * shape.tokens}", f"trainer.precision={precision}"]
    for method in ("seq_bypass", "seq_alp"):
        config = compose.load("train", [f"method={method}", *words, "trainer.deterministic_attention=true"])
        settings = config.method.perturbation
        perturbation = None if settings is None else LayerwisePerturbation(model, std=settings.std, seed=0)
        updaters[method] = Updater(
            model,
            config.method,
            config.trainer,
            perturbation=perturbation,
            temperature=1.0,
            reference=False,
            head=head,
            masters=masters,
            compiled=compiled,
        )
    seconds: dict[str, list[float]] = {method: [] for method in updaters}
    memory = {}
    for number in range(4):  # the first is not counted
        for method, updater in updaters.items():
            if not run.toy:
                torch.cuda.reset_peak_memory_stats()
            taken = run.seconds(lambda updater=updater, number=number: updater.update(batch, number))  # type: ignore[misc]
            seconds[method] += [taken] if number else []
            memory[method] = 0.0 if run.toy else torch.cuda.max_memory_allocated() / 2**30
    tokens = int(batch.lengths.sum())
    flops = 6.0 * (sum(value.numel() for value in model.parameters()) + shape.layers * shape.hidden * shape.tokens)
    ratio = statistics.median(a / b for a, b in zip(seconds["seq_alp"], seconds["seq_bypass"], strict=True))
    return {
        "seconds": {method: statistics.median(values) for method, values in seconds.items()},
        "gib": memory,
        "alp_over_bypass": ratio,
        "mfu": {method: flops * tokens / statistics.median(values) / peak for method, values in seconds.items()},
    }


def rollout(run: Run) -> dict[str, Any]:
    """Sampled tokens a second of the HF engine: a growing cache, and one of fixed size (on a GPU, recorded graphs)."""
    sequences, length = run.large.rollouts
    model, found = run.large.model(run.device, torch.bfloat16), {}
    for name, static in (("growing", False), ("fixed", True)):
        engine = HFEngine(model, dtype="bfloat16", device=run.device, batch_size=sequences, static=static)
        engine.sync_weights(model.named_parameters(), version=0)
        found[name] = _sampled(run, engine, sequences, length) | {"way": engine.describe()["decoding"]}
    speeds = [found[name]["tokens_per_second"] for name in ("fixed", "growing")]
    return {**found, "fixed_over_growing": speeds[0] / speeds[1], "sequences": sequences}


def vllm_engine(run: Run) -> dict[str, Any]:
    """Sampled tokens a second of vLLM on the trainer's own device, and seconds of a sync of weights, by which way."""
    built = vllm.installed()
    if built != ("cpu" if run.toy else "cuda"):
        return {"skipped": f"vLLM for this device is not installed (found: {built})"}
    sequences, length = run.large.rollouts
    model = (WIDE_TOY if run.toy else run.large).model(run.device, torch.bfloat16)
    words = ["rollout=vllm", "rollout.dtype=bfloat16", f"rollout.kv_cache_gib={0.25 if run.toy else 8}"]
    words += [f"rollout.max_sequences={sequences}", *([] if run.toy else ["rollout.sleep_level=2"])]
    settings: Any = compose.load("train", words).rollout
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model.save_pretrained(folder)
        models.character_tokenizer("0123456789+=#| ").save_pretrained(folder)
        fixed = fixed_probe(model, "bfloat16")
        engine = registry.make(settings, Host(model, folder, folder / "engine.log", run.device, 0, fixed))
        try:
            engine.sync_weights(model.named_parameters(), version=0)
            sampled = _sampled(run, engine, sequences, length)
            seconds = run.seconds(lambda: engine.sync_weights(model.named_parameters(), version=1))
            return {**sampled, "sync_seconds": seconds, "weights_by": engine.describe()["weights_by"]}
        finally:
            engine.close()


def _sampled(run: Run, engine: Engine, sequences: int, length: int) -> dict[str, float]:
    """Tokens a second of an engine that has done a batch before."""
    requests = [Request(tuple(range(2, 34)), (0, 0, 0, number, 0)) for number in range(sequences)]
    sampling = Sampling(1.0, length, eos_token_id=1, pad_token_id=0)
    engine.generate(requests, sampling)
    made: list[Any] = []
    seconds = run.seconds(lambda: made.extend(engine.generate(requests, sampling)))
    return {"tokens_per_second": sum(len(one.token_ids) for one in made) / seconds}


def tests(_run: Run) -> dict[str, Any]:
    """The tests that have a part for a GPU, where pytest is."""
    if importlib.util.find_spec("pytest") is None:
        return {"skipped": "pytest is not installed"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "gpu or cuda or device", *TESTS]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    if done.returncode not in (0, 5):
        raise RuntimeError(done.stdout[-2000:])
    return {"closing_line": done.stdout.strip().splitlines()[-1]}


def _batch(shape: Size, device: torch.device) -> Batch:
    """Random sequences, all response but their first eighth, with advantages of both signs."""
    random = torch.Generator().manual_seed(1)
    start = shape.tokens // 8
    ids = torch.randint(2, shape.vocabulary, (shape.sequences, shape.tokens), generator=random).tolist()
    trajectories = [
        Trajectory(
            prompt_ids=row[:start],
            response_ids=row[start:],
            response_mask=[True] * (shape.tokens - start),
            turn_ids=[0] * (shape.tokens - start),
            rollout_log_probs=[-10.0] * (shape.tokens - start),
            reward=float(number % 2),
            group=0,
            finished=True,
        )
        for number, row in enumerate(ids)
    ]
    batch = collate(trajectories, pad_token_id=0, first_sequence=0, device=device)
    return batch.with_(advantages=torch.where(batch.rewards > 0, 1.0, -1.0).float())


PARTS = (machine, noise, log_probs, repeatability, update, rollout, vllm_engine, tests)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/gpu.json"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=570.0, help="no part is begun later")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here (--device cpu rehearses at toy size)")
    run, results, failed = Run(torch.device(options.device), options.seconds), {}, False
    for part in PARTS:
        clock = time.monotonic()
        try:
            results[part.__name__] = part(run) if clock < run.end else {"skipped": "no time left"}
        except Exception as error:  # the others still run
            failed = True
            results[part.__name__] = {"failed": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
        results[part.__name__]["part_seconds"] = round(time.monotonic() - clock, 1)
        shown = {key: value for key, value in results[part.__name__].items() if key != "trace"}
        print(f"{part.__name__}: {json.dumps(shown)}", flush=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"written: {options.out}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
