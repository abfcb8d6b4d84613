"""Tokenizers that can chat, without downloads: one id per character, and templates in the two styles of the presets."""

from __future__ import annotations

import string

from transformers import PreTrainedTokenizerFast

from alp import models

CHATML = (
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Writes the date, as some do, and its own first token.
DATED = (
    "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "<bos>system\ndate {{ date_string }}\n"
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Printable characters and the special tokens of the templates; the end token is <eos>."""
    tokenizer = models.character_tokenizer(
        string.digits + string.ascii_letters + string.punctuation + " \nĠĊ"
    )  # the last two are what Qwen's makes of blanks
    tokenizer.add_special_tokens({"additional_special_tokens": ["<bos>", "<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    return tokenizer
