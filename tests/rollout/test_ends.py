"""The tokens that end a response: whoever names them, all of them count, and a missed one is not missed silently."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import Qwen2Config

from alp.configuration import compose
from alp.errors import UserError
from alp.rollout.ends import ends_of
from alp.rollout.engine import Completion
from tests.chat import CHATML, chat_tokenizer

# GLM's way: a turn has no end of its own, the next one's first token is it.
OPEN = (
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _folder(folder: Path, config: Any = None, generation: Any = None) -> Path:
    """A model's folder as far as ends go; ``eos_token_id`` of both files, left out where None."""
    Qwen2Config(vocab_size=128).save_pretrained(folder)
    content = json.loads((folder / "config.json").read_text())
    content.pop("eos_token_id", None)
    (folder / "config.json").write_text(json.dumps(content | ({} if config is None else {"eos_token_id": config})))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    return folder


def _model(*words: str) -> Any:
    return compose.load("train", ["task=sums_in_words", "model=smollm2_135m", *words]).model


TOKENIZER = chat_tokenizer(CHATML)
EOS, TURN = (int(TOKENIZER.convert_tokens_to_ids(token)) for token in ("<eos>", "<|im_end|>"))
START = int(TOKENIZER.convert_tokens_to_ids("<|im_start|>"))


@pytest.mark.parametrize(
    ("config", "generation", "chat", "ids"),
    [
        (None, None, True, {EOS, TURN}),
        (None, None, False, {EOS}),
        (TURN, None, False, {EOS, TURN}),
        (None, TURN, False, {EOS, TURN}),
        ([TURN, START], EOS, False, {EOS, TURN, START}),
        (EOS, [EOS, START], True, {EOS, TURN, START}),
        (-1, [None, 10_000, EOS], False, {EOS}),
        (None, "2", False, {EOS}),
    ],
)
def test_every_end_that_someone_names_is_one(
    tmp_path: Path, config: Any, generation: Any, chat: bool, ids: set[int]
) -> None:
    ends = ends_of(TOKENIZER, _folder(tmp_path, config, generation), _model(f"model.chat={str(chat).lower()}"))
    assert set(ends.ids) == ids
    assert ends.ids[0] == EOS
    sampling = ends.sampling(temperature=1.0, max_new_tokens=4)
    assert sampling.end_token_ids == ends.ids
    assert set(ends.named) <= {"tokenizer", "config.json", "generation_config.json", "chat template"}


def test_a_template_whose_ends_only_generation_config_names(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(OPEN)
    ends = ends_of(tokenizer, _folder(tmp_path, EOS, [EOS, START]), _model())
    assert set(ends.ids) == {EOS, START}
    assert "chat template" not in ends.named
    with pytest.raises(UserError, match=r"^model.chat: .*no token behind an answer, and neither"):
        ends_of(tokenizer, _folder(tmp_path, EOS, EOS), _model())


def test_nothing_that_ends_a_response_is_refused(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(OPEN)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match=r"^model.path: neither the tokenizer nor a configuration"):
        ends_of(tokenizer, _folder(tmp_path), _model("model.chat=false"))
    assert ends_of(tokenizer, _folder(tmp_path, TURN), _model("model.chat=false")).ids == (TURN,)


def test_who_disagrees_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ends_of(TOKENIZER, _folder(tmp_path, EOS, EOS), _model("model.chat=false")).say()
    assert not caplog.records
    ends_of(TOKENIZER, _folder(tmp_path, TURN, [EOS, TURN]), _model("model.chat=false")).say()
    (record,) = caplog.records
    assert f"tokenizer: {EOS} <eos>; config.json: {TURN} <|im_end|>; generation_config.json: {EOS} <eos>, {TURN}" in (
        record.getMessage()
    )


def _cut(*tokens: int) -> Completion:
    return Completion(list(tokens), [-1.0] * len(tokens), finished=False)


def test_a_first_batch_that_is_cut_behind_an_end_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    ends = ends_of(TOKENIZER, _folder(tmp_path), _model("model.chat=false"))
    ends.judge([_cut(5, TURN, 6)] * 10)
    (record,) = caplog.records
    assert f"10 of the first 10 responses are cut, and hold tokens that look like an end and are none: {TURN}" in (
        record.getMessage()
    )
    ends.judge([_cut(5, TURN, 6)] * 10)
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    "batch",
    [
        [_cut(5, 6)] * 10,  # long answers, nothing like an end
        [_cut(5, TURN)] * 8 + [Completion([5, EOS], [-1.0] * 2, finished=True)] * 2,  # most, not nearly all
        [],
    ],
)
def test_a_batch_that_is_only_long_is_no_news(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, batch: list[Completion]
) -> None:
    ends_of(TOKENIZER, _folder(tmp_path), _model("model.chat=false")).judge(batch)
    assert not caplog.records
