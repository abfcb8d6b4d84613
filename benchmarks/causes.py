"""Are causes named rightly? Faults at three strengths in real rollouts of the embedded model, and a confusion matrix.

    python -m benchmarks.causes folder=<kept: model and runs> [output=docs/causes.md] [seeds=10] [clean=18]
        [steps=1000]

The embedded model is taught (`alp pretrain`), an engine (the model in bfloat16) samples 8 steps of 24 sums, the
training code (float32) scores them, and one fault is put in: into the forward pass, the sampling, the ids, the weights
or the file, whichever it is of. Thresholds were set on the first seeds (`TUNED`); the matrix shows the others
alone. Clean runs are of engines in float32, bfloat16 and float16; naming rounding in them is
right. Runs are kept in the folder and judged again without the model when they are there.
"""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alp.diagnosis import checking
from alp.diagnosis.causes import causes
from alp.diagnosis.dumps import FIELDS, Dump, Raw

STEPS, ROWS, LONGEST = 8, 24, 26
STRENGTHS = (0, 1, 2)
TUNED, TUNED_CLEAN = 4, 6  # seeds below were looked at when thresholds were set
EXPECTED = {  # the fault, and what names it rightly
    "temperature": ("temperature on one side",),
    "top-p, top-k": ("top-k or top-p on one side",),
    "off by one": ("off by one token",),
    "retokenised": ("retokenised text",),
    "other prompt": ("another prompt (chat template)",),
    "stale": ("stale weights",),
    "quantised": ("quantised rollouts",),
    "placeholders": ("placeholders",),
    "padding": ("padding in the mask",),
    "wrong sequences": ("wrong sequences",),
    "draft model": ("log-probs of two models (speculative decoding)",),
}
CLEAN = ("agreement", "rounding")
Rows = list[list[int]]


class Lab:
    """The model, its prompts, and what can be done to them."""

    def __init__(self, folder: Path) -> None:
        from alp import models

        self.model = models.load_model(folder / "model", torch.device("cpu")).eval()
        tokenizer = models.load_tokenizer(folder / "model")
        self.pad, self.end = int(tokenizer.pad_token_id), int(tokenizer.eos_token_id)
        self.encode: Callable[[str], list[int]] = tokenizer.encode

    def prompts(self, random: np.random.Generator) -> Rows:
        """Sums of two numbers below 100, one a sequence, step by step."""
        return [self.encode(f"{a}+{b}=") for a, b in random.integers(0, 100, size=(STEPS * ROWS, 2)).tolist()]

    @torch.no_grad()
    def sample(
        self, engine: Any, prompts: Rows, seed: int, *, heat: float = 1.0, top_p: float = 1.0, top_k: int = 0
    ) -> tuple[Rows, list[list[float]]]:
        """Responses to the end token, and the log-probs of what they were drawn from."""
        random = torch.Generator().manual_seed(seed)
        responses: Rows = [[] for _ in prompts]
        chosen: list[list[float]] = [[] for _ in prompts]
        for _ in range(LONGEST):
            active = [row for row, response in enumerate(responses) if self.end not in response]
            if not active:
                break
            sequences = [prompts[row] + responses[row] for row in active]
            logits = self._logits(engine, sequences)
            last = torch.stack([logits[i, len(ids) - 1] for i, ids in enumerate(sequences)]) / heat
            log_probs = _restricted(last, top_p, top_k).log_softmax(-1)
            drawn = log_probs.exp().multinomial(1, generator=random)[:, 0]
            for row, token, value in zip(active, drawn.tolist(), log_probs.tolist(), strict=True):
                responses[row].append(token)
                chosen[row].append(value[token])
        return responses, chosen

    def _logits(self, model: Any, sequences: Rows) -> Tensor:
        width = max(map(len, sequences))
        ids = torch.tensor([row + [self.pad] * (width - len(row)) for row in sequences])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in sequences])
        logits: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
        return logits

    @torch.no_grad()
    def score(self, model: Any, prompts: Rows, responses: Rows) -> list[list[float]]:
        """Log-probs of responses."""
        return [row.tolist() for row in self.scored(model, prompts, responses)]

    def scored(self, model: Any, prompts: Rows, responses: Rows) -> list[Tensor]:
        """The same with its gradient."""
        sequences = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
        log_probs = self._logits(model, sequences).log_softmax(-1)
        found = []
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            places = torch.arange(len(prompt) - 1, len(prompt) + len(response) - 1)
            found.append(log_probs[row, places, torch.tensor(response)])
        return found


def _restricted(logits: Tensor, top_p: float, top_k: int) -> Tensor:
    """-inf outside of the nucleus or of the k largest."""
    if top_k:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    if top_p < 1:
        probabilities, order = logits.softmax(-1).sort(descending=True)
        out = probabilities.cumsum(-1) - probabilities >= top_p
        logits = logits.masked_fill(torch.zeros_like(out).scatter(-1, order, out), -torch.inf)
    return logits


def quantised(model: Any, bits: int) -> Any:
    """A copy with matrices rounded per row to so many bits, in bfloat16."""
    made = copy.deepcopy(model)
    for parameter in made.parameters():
        if parameter.ndim == 2:
            scale = parameter.data.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
            parameter.data = (parameter.data / scale).round() * scale
    return made.bfloat16()


class Run:
    """Rollouts of one seed, clean, and each fault put into them."""

    def __init__(self, lab: Lab, seed: int, dtype: torch.dtype = torch.bfloat16) -> None:
        self.lab, self.seed, self.random = lab, seed, np.random.default_rng(seed)
        self.engine = copy.deepcopy(lab.model).to(dtype)
        self.prompts = lab.prompts(self.random)
        self.responses, self.rollout = lab.sample(self.engine, self.prompts, seed)
        self.old = lab.score(lab.model, self.prompts, self.responses)

    def pair(self, old: Any = None, rollout: Any = None) -> tuple[Any, Any]:
        """Both policies, changed ones in the place of the clean."""
        return (self.old if old is None else old), (self.rollout if rollout is None else rollout)

    def chosen(self, share: float) -> set[int]:
        """Sequences that a fault hits, at least one."""
        count = max(1, round(share * len(self.responses)))
        return set(self.random.choice(len(self.responses), count, replace=False).tolist())

    def put_in(self, fault: str, strength: int) -> tuple[Any, Any]:
        """(π_old, μ), lists per sequence."""
        made: tuple[Any, Any] = getattr(self, "_" + fault.replace(", ", "_").replace("-", "_").replace(" ", "_"))(
            strength
        )
        return made

    def _resampled(self, engine: Any, **options: Any) -> tuple[Any, Any]:
        responses, rollout = self.lab.sample(engine, self.prompts, self.seed, **options)
        return self.lab.score(self.lab.model, self.prompts, responses), rollout

    def _temperature(self, strength: int) -> tuple[Any, Any]:
        heat = (1.05, 1.2, 1.5)[strength]
        return self._resampled(self.engine, heat=heat if self.seed // 2 % 2 == 0 else 1 / heat)

    def _top_p_top_k(self, strength: int) -> tuple[Any, Any]:
        if self.seed // 2 % 2 == 0:
            return self._resampled(self.engine, top_p=(0.98, 0.9, 0.8)[strength])
        return self._resampled(self.engine, top_k=(8, 4, 2)[strength])

    def _off_by_one(self, strength: int) -> tuple[Any, Any]:
        hit = self.chosen((0.1, 0.5, 1.0)[strength])
        moved = [[row[-1], *row[:-1]] if i in hit else row for i, row in enumerate(self.rollout)]
        return self.pair(rollout=moved)

    def _retokenised(self, strength: int) -> tuple[Any, Any]:
        """One token is lost on the way to the trainer; its log-probs are as many as the mask has."""
        hit, ids = self.chosen((0.1, 0.3, 1.0)[strength]), []
        for i, row in enumerate(self.responses):
            place = int(self.random.integers(2, max(3, len(row) - 1)))
            ids.append(row[:place] + row[place + 1 :] + [self.lab.pad] if i in hit and len(row) > 4 else row)
        return self.pair(old=self.lab.score(self.lab.model, self.prompts, ids))

    def _other_prompt(self, strength: int) -> tuple[Any, Any]:
        before = self.lab.encode((";", "#;", "#1;#")[strength])
        return self.pair(old=self.lab.score(self.lab.model, [before + row for row in self.prompts], self.responses))

    def _stale(self, strength: int) -> tuple[Any, Any]:
        """The trainer takes steps of policy gradient, the engine keeps its weights."""
        model, old = copy.deepcopy(self.lab.model), []
        optimizer = torch.optim.AdamW(model.parameters(), lr=(1e-4, 3e-4, 1e-3)[strength])
        rewards = np.random.default_rng(self.seed).normal(size=len(self.responses))
        for step in range(STEPS):
            rows = slice(step * ROWS, (step + 1) * ROWS)
            old += self.lab.score(model, self.prompts[rows], self.responses[rows])
            for _ in range(2):
                optimizer.zero_grad()
                log_probs = self.lab.scored(model, self.prompts[rows], self.responses[rows])
                pushed = [-reward * row.mean() for reward, row in zip(rewards[rows], log_probs, strict=True)]
                torch.stack(pushed).mean().backward()
                optimizer.step()
        return self.pair(old=old)

    def _quantised(self, strength: int) -> tuple[Any, Any]:
        return self._resampled(quantised(self.lab.model, (6, 5, 4)[strength]))

    def _placeholders(self, strength: int) -> tuple[Any, Any]:
        part = (0.01, 0.05, 0.2)[strength]
        return self.pair(rollout=[[0.0 if self.random.random() < part else x for x in row] for row in self.rollout])

    def _padding(self, strength: int) -> tuple[Any, Any]:
        behind = (1, 2, 4)[strength]
        longer = [row + [self.lab.pad] * behind for row in self.responses]
        old = self.lab.score(self.lab.model, self.prompts, longer)
        return self.pair(old=old, rollout=[row + [0.0] * behind for row in self.rollout])

    def _wrong_sequences(self, strength: int) -> tuple[Any, Any]:
        """The trainer scores another sequence's tokens in their place."""
        ids = list(self.responses)
        for i in self.chosen((1, 3, 6)[strength] / len(ids)):
            like = [j for j, row in enumerate(self.responses) if len(row) == len(ids[i]) and row != self.responses[i]]
            ids[i] = self.responses[int(self.random.choice(like))] if like else ids[i][::-1]
        return self.pair(old=self.lab.score(self.lab.model, self.prompts, ids))

    def _draft_model(self, strength: int) -> tuple[Any, Any]:
        draft = self.lab.score(quantised(self.lab.model, 3), self.prompts, self.responses)
        part = (0.2, 0.4, 0.6)[strength]
        mixed = [
            [b if self.random.random() < part else a for a, b in zip(row, other, strict=True)]
            for row, other in zip(self.rollout, draft, strict=True)
        ]
        return self.pair(rollout=mixed)


# ---- runs on disk ----------------------------------------------------------------------------------------------------


def save(path: Path, old: list[list[float]], rollout: list[list[float]]) -> None:
    """Flat arrays and lengths."""
    lengths = np.array([len(row) for row in old])
    np.savez(path, old=np.concatenate(old), rollout=np.concatenate(rollout), lengths=lengths)


def load(path: Path) -> Dump:
    """The same as `alp diagnose` would have it."""
    with np.load(path) as run:
        old, rollout, lengths = run["old"], run["rollout"], run["lengths"].astype(np.int64)
    tokens = {"old_log_probs": old, "rollout_log_probs": rollout, "response_mask": np.ones(len(old))}
    steps = np.repeat(np.arange(STEPS), ROWS).astype(float)
    names = {field: field for field in FIELDS}
    return checking.check(Raw(tokens, dict.fromkeys(tokens, lengths), steps, str, names, source="a run"))


def make(folder: Path, seeds: int, clean: int, steps: int) -> None:
    """The model and every run that is not there yet."""
    if not (folder / "model").is_dir():
        from alp.configuration import compose
        from alp.training.pretrain import pretrain

        pretrain(compose.load("pretrain", [f"pretrain.steps={steps}", f"run.dir='{folder}'"]))
    (folder / "runs").mkdir(exist_ok=True)
    torch.set_num_threads(1)
    lab = Lab(folder)
    for seed in range(clean):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            path = folder / "runs" / f"clean-{str(dtype).rpartition('.')[2]}-{seed}.npz"
            if not path.exists():
                run = Run(lab, 100 + seed, dtype)
                save(path, run.old, run.rollout)
    for seed in range(seeds):
        paths = {
            (fault, strength): folder / "runs" / f"{fault}-{strength}-{seed}.npz"
            for fault in EXPECTED
            for strength in STRENGTHS
        }
        if all(path.exists() for path in paths.values()):
            continue
        run = Run(lab, seed)
        for (fault, strength), path in paths.items():
            save(path, *run.put_in(fault, strength))
        print(f"seed {seed}", file=sys.stderr, flush=True)


# ---- judgement -------------------------------------------------------------------------------------------------------


def judged(folder: Path, held_out: bool) -> tuple[Counter[tuple[str, int, str]], Counter[tuple[str, str]]]:
    """(fault, strength, first name) of the runs with faults, (dtype, first name) of the clean ones, of half of the
    seeds."""
    faults: Counter[tuple[str, int, str]] = Counter()
    clean: Counter[tuple[str, str]] = Counter()
    for path in sorted((folder / "runs").glob("*.npz")):
        *head, seed = path.stem.split("-")
        if (int(seed) >= (TUNED_CLEAN if head[0] == "clean" else TUNED)) != held_out:
            continue
        named = causes(load(path))[0].name
        if head[0] == "clean":
            clean[head[1], named] += 1
        else:
            faults["-".join(head[:-1]), int(head[-1]), named] += 1
    return faults, clean


def shares(faults: Counter[tuple[str, int, str]], clean: Counter[tuple[str, str]]) -> tuple[float, float]:
    """Named rightly at the two larger strengths, and false alarms on clean runs."""
    larger = [(fault, name, count) for (fault, strength, name), count in faults.items() if strength > 0]
    right = sum(count for fault, name, count in larger if name in EXPECTED[fault])
    alarms = sum(count for (_, name), count in clean.items() if name not in CLEAN)
    return right / max(1, sum(count for *_, count in larger)), alarms / max(1, clean.total())


def page(folder: Path) -> str:
    """Markdown: shares and the matrix of the held-out half."""
    faults, clean = judged(folder, held_out=True)
    right, alarms = shares(faults, clean)
    tuned = shares(*judged(folder, held_out=False))
    lines = [
        "# Causes by name: the confusion matrix",
        "",
        "Written by `python -m benchmarks.causes`; what was done is said in",
        "[its first lines](../benchmarks/causes.py).",
        "Every row is a fault at one strength (0 the weakest), every entry how many held-out runs were given that name",
        "first.",
        "",
        f"Held-out runs: {100 * right:.0f} % named rightly at the two larger strengths, {100 * alarms:.0f} % false"
        f" alarms in {clean.total()} clean runs (the half that thresholds were set on: {100 * tuned[0]:.0f} % and"
        f" {100 * tuned[1]:.0f} %).",
        "",
        "| fault | strength | named |",
        "|---|---|---|",
    ]
    for fault in EXPECTED:
        for strength in STRENGTHS:
            names = Counter({name: n for (f, s, name), n in faults.items() if (f, s) == (fault, strength)})
            said = ", ".join(
                f"**{name}** {n}" if name in EXPECTED[fault] else f"{name} {n}" for name, n in names.most_common()
            )
            lines.append(f"| {fault} | {strength} | {said} |")
    for dtype in sorted({dtype for dtype, _ in clean}):
        said = ", ".join(f"{name} {n}" for (d, name), n in sorted(clean.items()) if d == dtype)
        lines.append(f"| none, engine in {dtype} | – | {said} |")
    return "\n".join(lines) + "\n"


def main(words: list[str]) -> None:
    """Make what is missing, judge, print or write."""
    given = dict(word.split("=", 1) for word in words)
    folder = Path(given["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    if "judge" not in given:
        make(folder, int(given.get("seeds", 10)), int(given.get("clean", 18)), int(given.get("steps", 1000)))
    text = page(folder)
    if "output" in given:
        Path(given["output"]).write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
