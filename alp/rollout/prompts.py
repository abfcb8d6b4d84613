"""From a problem to the ids a model continues. The one place that knows chat markup."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from alp.configuration.model_schema import Model
from alp.errors import UserError
from alp.foreign import reason
from alp.tasks.task import Problem, Task

# Some templates write today's date into the system message (Llama 3.2, gpt-oss), from a variable or from the clock that
# transformers lends them: a prompt must depend on neither.
_DAY = datetime(2024, 7, 26)
_CLOCK: dict[str, Any] = {"date_string": _DAY.strftime("%d %b %Y"), "strftime_now": _DAY.strftime}
_MARK = "MARK"


def prompt_ids(tokenizer: PreTrainedTokenizerBase, task: Task, problem: Problem, model: Model) -> list[int]:
    """Ids of one problem for one model, used by training, validation and evaluation alike."""
    return encode(tokenizer, prompt_text(tokenizer, task, problem, model), model)


def encode(tokenizer: PreTrainedTokenizerBase, text: str, model: Model) -> list[int]:
    """Ids of a prompt's text; in a chat the template has written every special token already.

    What a tokenizer puts behind a text (an end token, a separator) is left out: a prompt is open, or the model would
    begin anew behind it.
    """
    plain = list(tokenizer.encode(text, add_special_tokens=False))
    if model.chat:
        return plain
    ids = list(tokenizer.encode(text))
    for begin in range(len(ids) - len(plain) + 1):
        if ids[begin : begin + len(plain)] == plain:
            return ids[: begin + len(plain)]
    raise UserError(
        "model.path: the tokenizer makes other tokens of a text where it adds its special tokens, so what belongs to"
        " the prompt cannot be told"
    )


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


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that the chat template puts behind an answer, None where it puts none (GLM's next turn begins
    with a token that ends the one before)."""
    text = _render(tokenizer, [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}])
    ids = tokenizer.encode(text.rpartition(_MARK)[2].lstrip(), add_special_tokens=False)
    if not ids or tokenizer.convert_ids_to_tokens(ids[0]) not in tokenizer.get_added_vocab():
        return None
    return int(ids[0])


def _render(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], **options: Any) -> str:
    """A conversation as text. Raises UserError, with what to set, for a template that refuses it."""
    if not tokenizer.chat_template:
        raise UserError("model.chat: the tokenizer has no chat template; set model.chat=false")
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, **_CLOCK, **options))
    except TemplateError as error:
        mend = "; it may know no system message: set model.system=''" if turns[0]["role"] == "system" else ""
        raise UserError(f"model.chat: the tokenizer's chat template refuses a prompt: {reason(error)}{mend}") from error
    except Exception as error:  # what a template may do with text is without bounds
        raise UserError(f"model.chat: the tokenizer's chat template cannot be used: {reason(error)}") from error
