"""Prompts: chat markup from the tokenizer's own template, examples before the question, every end token known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from alp import models
from alp.configuration import compose
from alp.errors import UserError
from alp.rollout import prompts
from alp.rollout.engine import Purpose, Request, Sampling
from alp.rollout.hf import HFEngine
from alp.tasks.catalogue import load_task
from tests.chat import DATED, chat_tokenizer


def _setting(*words: str) -> tuple[Any, Any, Any]:
    loaded = compose.load("train", ["task=sums_in_words", "model=smollm2_135m", *words])
    task = load_task(loaded.task)
    return loaded.model, task, task.problems("test")[0]


def _text(tokenizer: PreTrainedTokenizerFast, *words: str) -> str:
    model, task, problem = _setting(*words)
    return str(tokenizer.decode(prompts.prompt_ids(tokenizer, task, problem, model))).replace(
        problem.problem, "QUESTION"
    )


def test_plain_text_has_examples_closed_by_the_end_token() -> None:
    _, task, problem = _setting()
    (first, one), (second, two) = task.examples(problem)
    assert _text(chat_tokenizer(), "model.chat=false") == f"{first} {one}<eos>\n{second} {two}<eos>\nQUESTION"


def test_a_chat_has_system_examples_and_the_generation_prompt() -> None:
    _, task, problem = _setting()
    (first, one), (second, two) = task.examples(problem)
    turns = [("user", first), ("assistant", one), ("user", second), ("assistant", two), ("user", "QUESTION")]
    body = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns) + "<|im_start|>assistant\n"
    assert _text(chat_tokenizer()) == f"<|im_start|>system\n{task.system}<|im_end|>\n{body}"
    assert _text(chat_tokenizer(), "model.system='be brief'") == f"<|im_start|>system\nbe brief<|im_end|>\n{body}"
    assert _text(chat_tokenizer(), "model.system=''") == body


def test_no_special_token_is_added_twice_and_no_clock_comes_in() -> None:
    text = _text(chat_tokenizer(DATED))
    assert text.startswith("<bos>system\ndate 26 Jul 2024\n")
    assert text.count("<bos>") == 1


def test_a_response_ends_with_the_end_token_or_the_template_s_end_of_turn() -> None:
    tokenizer = chat_tokenizer()
    turn, end = tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.eos_token_id
    model, *_ = _setting()
    assert prompts.sampling(tokenizer, model, temperature=1.0, max_new_tokens=4).end_token_ids == (end, turn)
    plain = model.model_copy(update={"chat": False})
    assert prompts.sampling(tokenizer, plain, temperature=1.0, max_new_tokens=4).end_token_ids == (end,)
    tokenizer.eos_token = "<|im_end|>"
    assert prompts.sampling(tokenizer, model, temperature=1.0, max_new_tokens=4).end_token_ids == (turn,)


@pytest.mark.parametrize(
    ("template", "said"), [(None, "no chat template"), ("{{ messages[-1]['content'] }}", "no token behind an answer")]
)
def test_a_tokenizer_that_cannot_chat_is_refused(template: str | None, said: str) -> None:
    model, *_ = _setting()
    with pytest.raises(UserError, match=said):
        prompts.sampling(chat_tokenizer(template), model, temperature=1.0, max_new_tokens=4)
    with pytest.raises(UserError, match="needs chat: true"):
        compose.load("train", ["model.system=hello"])


def test_sampling_stops_at_every_end_token(base_model: Path) -> None:
    model = models.load_model(base_model, models.resolve_device("cpu"))
    engine = HFEngine(model, dtype="float32", device=models.resolve_device("cpu"), batch_size=64)
    engine.sync_weights(model.named_parameters(), version=0)
    requests = [Request((3, 12, 4, 13), (Purpose.TRAINING, 0, 1, 0, sample)) for sample in range(64)]
    one, two = (engine.generate(requests, Sampling(1.0, 12, 1, 0, stop_token_ids=stops)) for stops in ((), (5, 6)))
    assert any(item.token_ids[-1] in (5, 6) for item in two)
    for before, after in zip(one, two, strict=True):
        cut = next((place for place, token in enumerate(before.token_ids) if token in (1, 5, 6)), None)
        assert after.token_ids == (before.token_ids if cut is None else before.token_ids[: cut + 1])
        assert after.finished == (cut is not None)
