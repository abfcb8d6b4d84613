"""Prompts: chat markup from the tokenizer's own template, examples before the question, every end token known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
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


def test_a_template_that_asks_for_the_clock_gives_the_same_ids_on_any_day() -> None:
    asking = "{{ strftime_now('%Y-%m-%d %H:%M:%S') }}{% for turn in messages %}{{ turn.content }}<|im_end|>{% endfor %}"
    assert _text(chat_tokenizer(asking), "model.system=''") == _text(chat_tokenizer(asking), "model.system=''")
    assert _text(chat_tokenizer(asking), "model.system=''").startswith("2024-07-26 00:00:00")


NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for turn in messages %}{{ turn.content }}<|im_end|>{% endfor %}"
)


def test_a_template_without_a_system_role_is_one_line_that_says_what_to_set() -> None:
    with pytest.raises(UserError, match=r"^model.chat: .*System role not supported; .*set model.system=''$"):
        _text(chat_tokenizer(NO_SYSTEM))
    assert _text(chat_tokenizer(NO_SYSTEM), "model.system=''").endswith("<|im_end|>")
    for broken in ("{{ messages[7].content }}", "{{ 1 / 0 }}", "{% for %}", "{{ messages[0].content.nope() }}"):
        with pytest.raises(UserError, match=r"^model.chat: the tokenizer's chat template (refuses|cannot)"):
            _text(chat_tokenizer(broken))


@pytest.mark.parametrize("single", ["$A <eos>", "<bos> $A <eos>", "<bos> $A", "<bos> $A <eos> <eos>"])
def test_what_a_tokenizer_puts_behind_a_text_is_no_part_of_a_prompt(single: str) -> None:
    tokenizer = chat_tokenizer()
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<bos>", "<eos>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=ids)
    model = _setting("model.chat=false")[0]
    begin = ["<bos>"] * single.startswith("<bos>")
    for text in ("1+1=", "<eos>1", "1<eos>", "<eos>", "a<bos>"):
        pieces = tokenizer.convert_ids_to_tokens(prompts.encode(tokenizer, text, model))
        assert "".join(pieces) == "".join(begin) + text, (single, text)


@pytest.mark.parametrize("template", [None])
def test_a_tokenizer_that_cannot_chat_is_refused(template: str | None) -> None:
    with pytest.raises(UserError, match="no chat template"):
        _text(chat_tokenizer(template))
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
