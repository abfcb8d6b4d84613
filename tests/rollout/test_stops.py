"""Where a turn ends: in text, in the tokens of tokenizers that cut fences anywhere, and in the engine's own loop."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from alp import models
from alp.rollout.engine import Completion, Request, Sampling
from alp.rollout.hf import HFEngine
from alp.rollout.stops import Stops, cut
from alp.tasks.environment import BOX, CODE, Form, first

FORMS = (CODE, BOX)
TAG = Form("<search>", "</search>")
CASES = [
    ("", None),
    ("no form at all", None),
    ("```python\nprint(1)\n```", "print(1)"),
    ("think\n```python\nx = '`'\n``\n```` and on", "x = '`'\n``"),
    ("```python\n```", ""),
    ("```python\nprint(1)", None),
    ("```\nprint(1)\n```", None),
    ("```py\nprint(1)\n```", None),
    (r"so \boxed{\frac{1}{2}} is it", r"\frac{1}{2}"),
    (r"\boxed{1", None),
    (r"\boxed{}", ""),
    ("```python\nprint('\\\\boxed{3}')\n``` and \\boxed{4}", "print('\\\\boxed{3}')"),
    ("\\boxed{2} then ```python\nprint(1)\n```", "2"),
    ("\\boxed{ ```python\nprint(1)\n```", None),
]


@pytest.mark.parametrize(("text", "content"), CASES)
def test_the_form_that_begins_first_decides(text: str, content: str | None) -> None:
    found = first(text, FORMS)
    assert (None if found is None else found.content) == content
    if found is not None:
        assert first(text[: found.end], FORMS) == found
        assert first(text[: found.end - 1], FORMS) is None


def _bytes() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that has merged pieces of fences and boxes, as published ones have."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    corpus = [text for text, _ in CASES] * 20 + ["}}$ }. ```\n\n ``python"] * 20
    trainer = trainers.BpeTrainer(
        vocab_size=340, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|end|>"]
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")


BYTES = _bytes()
STOPS = Stops(BYTES, FORMS)
PARTS = ["```python\n", "\n```", "```", "`", "\n", "\\boxed{", "{", "}", "print(1)", "é", "∑", " "]


def _last(ids: list[int]) -> int | None:
    """By definition: the fewest tokens whose text has a closed form."""
    return next((n for n in range(1, len(ids) + 1) if first(BYTES.decode(ids[:n]), FORMS) is not None), None)


@pytest.mark.parametrize(("text", "content"), CASES)
def test_tokens_end_where_their_text_does(text: str, content: str | None) -> None:
    ids = BYTES.encode(text)
    assert STOPS.count(ids) == _last(ids)
    assert (STOPS.count(ids) is None) == (content is None)


@given(st.lists(st.sampled_from(PARTS), max_size=12).map("".join), st.randoms(use_true_random=False))
def test_however_a_text_is_cut_into_tokens(text: str, chance: random.Random) -> None:
    ids = []
    while text:  # not as the tokenizer would cut it: a model may sample any pieces
        size = chance.randint(1, min(6, len(text)))
        ids += BYTES.encode(text[:size])
        text = text[size:]
    assert STOPS.count(ids) == _last(ids)


def test_other_forms_and_ids_without_a_token() -> None:
    stops = Stops(BYTES, (TAG,))
    ids = BYTES.encode("<search>a</search>")
    assert stops.count([5000, *ids, 5000]) == len(ids) + 1
    assert Stops.of(BYTES, ()) is None


def test_what_lies_behind_is_dropped_with_its_log_probs() -> None:
    ids = BYTES.encode("```python\nprint(1)\n``` and on")
    count = STOPS.count(ids)
    assert count is not None
    assert count < len(ids)
    made = Completion(ids, [-float(place) for place in range(len(ids))], finished=True)
    sampling = Sampling(1.0, 99, 0, 0, stops=STOPS)
    (found,) = cut([made], [Request((1,), (0,))], sampling)
    assert (found.token_ids, found.log_probs, found.finished) == (ids[:count], made.log_probs[:count], False)
    (short,) = cut([made], [Request((1,), (0,), limit=3)], sampling)
    assert short.token_ids == ids[:3]
    assert cut([made], [Request((1,), (0,))], Sampling(1.0, 99, 0, 0)) == [made]


@pytest.fixture(scope="module")
def engine() -> HFEngine:
    """Of a small model that writes anything, so that forms of one or two characters come often."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(LETTERS), hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).eval()
    made = HFEngine(model, dtype="float32", device=torch.device("cpu"), batch_size=16)
    made.sync_weights(model.named_parameters(), version=0)
    return made


LETTERS = models.character_tokenizer("ab{}`c")
SHORT = Stops(LETTERS, (Form("a", "b"), Form("{", "}", nested=True)))
PLAIN = Sampling(1.0, 20, 1, 0)
REQUESTS = [Request((2, 3, 4 + number % 3), (0, 0, 0, number, 0)) for number in range(40)]


def test_the_engine_stops_there_with_what_it_would_have_sampled(engine: HFEngine) -> None:
    stopping = Sampling(1.0, 20, 1, 0, stops=SHORT)
    whole, stopped = engine.generate(REQUESTS, PLAIN), engine.generate(REQUESTS, stopping)
    shorter = 0
    for made, expected in zip(stopped, cut(whole, REQUESTS, stopping), strict=True):
        assert made.token_ids == expected.token_ids
        assert made.finished == expected.finished
        torch.testing.assert_close(made.log_probs, expected.log_probs, atol=1e-5, rtol=0)
        shorter += not made.finished and len(made.token_ids) < 20
    assert shorter > 10, "the forms must occur"


def test_the_engine_keeps_to_a_request_s_own_limit(engine: HFEngine) -> None:
    limited = [Request(item.prompt_ids, item.key, 1 + number % 5) for number, item in enumerate(REQUESTS)]
    whole = engine.generate(REQUESTS, PLAIN)
    for made, full, request in zip(engine.generate(limited, PLAIN), whole, limited, strict=True):
        assert made.token_ids == full.token_ids[: request.limit]
        assert made.finished == (made.token_ids[-1] == 1)
