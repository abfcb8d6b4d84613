"""From a problem to the ids a model continues, and the tokens that end its answer. The one place that knows chat
markup."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from alp.configuration.model_schema import Model
from alp.errors import UserError
from alp.foreign import reading
from alp.rollout.engine import Sampling
from alp.tasks.task import Problem, Task

# Some templates write today's date into the system message (Llama 3.2): the prompt must not depend on the clock.
_TEMPLATE_DATE = "26 Jul 2024"
_MARK = "MARK"


def prompt_ids(tokenizer: PreTrainedTokenizerBase, task: Task, problem: Problem, model: Model) -> list[int]:
    """Ids of one problem for one model, used by training, validation and evaluation alike."""
    return encode(tokenizer, prompt_text(tokenizer, task, problem, model), model)


def encode(tokenizer: PreTrainedTokenizerBase, text: str, model: Model) -> list[int]:
    """Ids of a prompt's text; in a chat the template has written every special token already."""
    return list(tokenizer.encode(text, add_special_tokens=not model.chat))


def prompt_text(tokenizer: PreTrainedTokenizerBase, task: Task, problem: Problem, model: Model) -> str:
    """What one model is given of one problem.

    With ``model.chat`` the task's system message (``model.system`` where set) and its examples are turns before the
    question; without, examples are lines before it, each closed by the end token. Raises UserError for a tokenizer
    without a chat template.
    """
    examples, question = task.examples(problem), task.prompt(problem)
    if not model.chat:
        return "".join(f"{asked} {answer}{tokenizer.eos_token}\n" for asked, answer in examples) + question
    system = model.system if model.system is not None else task.system
    turns = [{"role": "system", "content": system}] if system else []
    for asked, answer in examples:
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return _render(tokenizer, [*turns, {"role": "user", "content": question}], add_generation_prompt=True)


def sampling(tokenizer: PreTrainedTokenizerBase, model: Model, *, temperature: float, max_new_tokens: int) -> Sampling:
    """What an engine is told: temperature, limit, and every token that ends a response of this model."""
    if tokenizer.eos_token_id is None:
        raise UserError("model.path: the tokenizer has no end token, so no response would ever end")
    end = int(tokenizer.eos_token_id)
    turn = _end_of_turn(tokenizer) if model.chat else end
    return Sampling(
        temperature, max_new_tokens, end, int(tokenizer.pad_token_id), stop_token_ids=() if turn == end else (turn,)
    )


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """The special token that the chat template puts behind an answer. Raises UserError where it puts none."""
    text = _render(tokenizer, [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}])
    ids = tokenizer.encode(text.rpartition(_MARK)[2].lstrip(), add_special_tokens=False)
    if not ids or tokenizer.convert_ids_to_tokens(ids[0]) not in tokenizer.get_added_vocab():
        raise UserError(
            "model.chat: the tokenizer's chat template puts no token behind an answer, so no response would ever end;"
            " chat=false?"
        )
    return int(ids[0])


def _render(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], **options: Any) -> str:
    if not tokenizer.chat_template:
        raise UserError("model.chat: the tokenizer has no chat template; set model.chat=false")
    with reading("model.chat", "the tokenizer's chat template"):
        return str(tokenizer.apply_chat_template(turns, tokenize=False, date_string=_TEMPLATE_DATE, **options))
