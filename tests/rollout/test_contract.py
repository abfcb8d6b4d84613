"""What tasks and engines give is checked where it enters: the user's faults by problem, the engine's as its failure."""

from __future__ import annotations

import json
import math
import re
import shutil
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alp import models
from alp.cli import main
from alp.errors import UserError
from alp.rollout.contract import check_completions, graded
from alp.rollout.engine import Completion, Request, Sampling
from alp.tasks.task import Problem, Task
from tests.conftest import TINY_TRAINER

PROBLEM = Problem("p1", "1+1=", "2", "own")
SAMPLING = Sampling(1.0, 4, eos_token_id=1, pad_token_id=0)
REQUEST = Request((3,), (0,))


class _Fixed(Task):
    def __init__(self, given: Any) -> None:
        self.given = given

    def problems(self, split: str) -> list[Problem]:
        return [PROBLEM]

    def grade(self, problem: Problem, response: str) -> float:
        return self.given  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "value", [0, 1, True, False, 0.5, np.float32(0.5), np.float64(1), np.int64(1), np.bool_(True), Fraction(1, 2)]
)
def test_real_numbers_are_rewards(value: Any) -> None:
    (found,) = graded(_Fixed(value), [PROBLEM], ["2"])
    assert type(found) is float
    assert found == float(value)


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        None,
        "1.0",
        2.0,
        -1,
        np.float32("nan"),
        np.float32(1.5),
        1j,
        Decimal(1),
        [1.0],
        np.array([0.5]),
        torch.ones(1),
    ],
)
def test_anything_else_is_named_with_its_problem(value: Any) -> None:
    with pytest.raises(UserError, match=r"reward of a response to problem 'p1' is .*; a number from 0 to 1 is needed"):
        graded(_Fixed(value), [PROBLEM], ["2"])


@pytest.mark.parametrize("given", [[], [1.0, 1.0], None, 1.0, iter([1.0]), "1"])
def test_one_reward_each(given: Any) -> None:
    task = _Fixed(0.0)
    task.grade_all = lambda problems, responses: given  # type: ignore[method-assign]
    with pytest.raises(UserError, match="for 1 responses; a list of one reward each is needed"):
        graded(task, [PROBLEM], ["2"])


@pytest.mark.parametrize(
    "item",
    [
        Completion([], [], False),
        Completion([5, 1], [-1.0], True),
        Completion([5, 5, 5, 5, 1], [-1.0] * 5, True),
        Completion([5, 1], [-1.0, -1.0], False),
        Completion([5, 5, 5, 5], [-1.0] * 4, True),
        Completion([1, 5, 1], [-1.0] * 3, True),
        Completion([5, 5], [-1.0] * 2, False),
        Completion([99, 1], [-1.0] * 2, True),
        Completion([-1, 1], [-1.0] * 2, True),
        Completion([2.5, 1], [-1.0] * 2, True),  # type: ignore[list-item]
        Completion([5, 1], [math.nan, -1.0], True),
        Completion([5, 1], [-math.inf, -1.0], True),
        Completion([5, 1], [0.5, -1.0], True),
        Completion([5, 1], [None, -1.0], True),  # type: ignore[list-item]
    ],
)
def test_an_engine_that_breaks_its_word_fails(item: Completion) -> None:
    good = Completion([5, 1], [1e-7, -1.0], True)
    check_completions([good, Completion([5] * 4, [-1.0] * 4, False)], [REQUEST] * 2, SAMPLING, 99)
    with pytest.raises(RuntimeError, match=r"^engine: "):
        check_completions([good, item], [REQUEST] * 2, SAMPLING, 99)
    with pytest.raises(RuntimeError, match="1 completions of 2 requests"):
        check_completions([good], [REQUEST] * 2, SAMPLING, 99)


def _data(folder: Path, **changed: list[dict[str, str]]) -> str:
    rows = {
        name: [{"id": f"{name}-{n}", "problem": f"{n}+1=", "answer": str(n + 1), "source": "x"} for n in range(3)]
        for name in ("train", "validation", "test")
    }
    for name, items in (rows | changed).items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return f"task.data='{folder}'"


PROMPTS = [
    ("", "its prompt is empty"),
    ("  ", "its prompt is empty"),
    ("1 +2=", r"its prompt holds ' ' \(U\+0020\)"),
    ("1+\n2=", r"its prompt holds '\\n' \(U\+000A\)"),
    ("é+2=", r"its prompt holds 'é' \(U\+00E9\)"),
    (
        "1" * 500 + "=",
        "1 of 1 prompts of .* pass the limit of 512 tokens together with 24 new ones; .* has 501 tokens; lower max",
    ),
    ("1+\ud8002=", "holds half a character"),
]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize(("text", "said"), PROMPTS)
def test_a_prompt_that_cannot_be_asked_is_refused_before_anything(
    base_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str, split: str
) -> None:
    words = [
        _data(tmp_path, **{split: [{"id": "odd", "problem": text, "answer": "2", "source": "x"}]}),
        f"model.path='{base_model}'",
    ]
    verb = ["evaluate", "evaluation.samples=1"] if split == "test" else ["train", "run.tracking=null", *TINY_TRAINER]
    assert main([*verb, *words, f"run.dir='{tmp_path}/run'"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("alp: error: ")]
    assert re.search(said, line), line
    assert "half" in said or ("problem 'odd'" in line and f" of {split}" in line)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert not (tmp_path / "run" / "evaluation").exists()


def test_a_tokenizer_of_another_model_is_refused(
    base_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(base_model, folder)
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(content | {"vocab_size": 10}))
    words = [_data(tmp_path), f"model.path='{folder}'", f"run.dir='{tmp_path}/run'", "evaluation.samples=1"]
    assert main(["evaluate", *words]) == 2
    assert "has the ids 0 … 15, the model has embeddings for 0 … 9" in capsys.readouterr().err


def test_words_that_a_tokenizer_knows_whole_are_no_unknown_characters() -> None:
    """A character without a token of its own is no fault where the text around it has one."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    from alp.rollout import contract

    inner = Tokenizer(WordLevel({"<unk>": 0, "<eos>": 1, "how": 2, "many": 3, "?": 4}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="<eos>")
    model = models.ModelConfig(
        name="x",
        path=None,
        source=None,
        chat=False,
        system=None,
        max_prompt_tokens=None,
        gradient_checkpointing=False,
        layers=1,
        hidden=4,
        heads=1,
        intermediate=4,
    )

    def check(text: str) -> None:
        problems = {"test": [Problem("p", text, "", "x")]}
        contract.check_prompts(
            tokenizer, _Fixed(0.0), problems, model=model, limits=contract.Limits(5, None), max_new_tokens=1
        )

    check("how many ?")
    for text in ("how many é?", "how much ?"):
        with pytest.raises(UserError, match="problem 'p' of test"):
            check(text)
