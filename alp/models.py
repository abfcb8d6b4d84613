"""Causal language models and tokenizers as files: build the embedded ones, load, save. The only module that loads
weights.

A model is loaded whole or not at all (docs/models.md): nothing of it is ever initialised at random.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging as transformers_logging

from alp import model_files
from alp.configuration.model_schema import Model as ModelConfig
from alp.errors import UserError
from alp.foreign import reading, reason
from alp.model_files import FLOATING, Stored, check_folder, check_model, content_hash, listed
from alp.reproducibility import install, partial_folder, write_json

__all__ = ["check_folder", "check_model", "content_hash", "load_model", "load_tokenizer", "save_model"]

logger = logging.getLogger(__name__)
_GENERATION_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
PAD, EOS = "<pad>", "<eos>"
_SPARE = (
    2**30
)  # bytes that a model may need beyond its weights (masks, tables of positions) before a configuration is disbelieved
transformers_logging.disable_progress_bar()  # a bar per loaded file is noise in a job's log


def resolve_device(name: str) -> torch.device:
    """``auto`` is the GPU where there is one. Raises UserError when cuda is asked for and absent."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device 'cuda' asked for, but torch sees no GPU here; did you mean 'cpu' (or 'auto')?")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def character_tokenizer(alphabet: Sequence[str]) -> PreTrainedTokenizerFast:
    """One id per character of ``alphabet``, after padding (0) and end of sequence (1), and behind them one per longer
    text in it. Of the texts that begin at a place the longest is taken.

    Longer texts are added tokens: what reads a saved tokenizer makes another model of its vocabulary, one of
    characters, and keeps those.

    Any other character is lost in encoding: ``alp.rollout.contract`` refuses prompts that hold one.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: index for index, token in enumerate([PAD, EOS, *(one for one in alphabet if len(one) == 1)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS)
    whole.add_tokens([AddedToken(text, normalized=False) for text in alphabet if len(text) > 1])
    return whole


def build_embedded(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> Qwen2ForCausalLM:
    """A randomly initialised Qwen2 of the configured size with tied embeddings, float32."""
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden,
            intermediate_size=config.intermediate,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )


def _load(kind: Any, folder: Path, **options: Any) -> Any:
    """Read what ``save_pretrained`` wrote. Raises UserError for what cannot be read, and for a model that comes with
    code of its own."""
    with reading("model.path", folder), _silent():
        try:
            return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
        except ValueError as error:
            if "trust_remote_code" not in str(error):
                raise
            raise UserError(
                f"model.path: {folder} cannot be read as it is: it brings code of its own, which is never run"
            ) from None


@contextmanager
def _silent() -> Iterator[None]:
    """transformers reports at length what is refused here in one line."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


def checkpoint_layers(model: Any) -> int:
    """Compute the layers' activations again in the backward pass; returns how many do. Raises UserError where a model
    cannot.

    transformers checkpoints in training mode alone. That mode is set on the layers themselves, not on the parts inside
    them: dropout stays off, a policy has one distribution.
    """
    try:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    except ValueError as error:
        raise UserError(f"model.gradient_checkpointing: {error}") from None
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise UserError(
            f"model.gradient_checkpointing: {type(model).__name__} has no layers that transformers can compute again"
        )
    for layer in layers:
        layer.training = True
    return len(layers)


def text_config(folder: Path) -> Any:
    """The configuration of a saved model's language part."""
    return _load(AutoConfig, folder).get_text_config()


def depth_of(folder: Path) -> int:
    """Number of decoder layers of a saved model, from its configuration alone."""
    return int(text_config(folder).num_hidden_layers)


def load_model(folder: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> Any:
    """The model in ``dtype``, in evaluation mode (no dropout: a policy has one distribution).

    Its ``read_from`` counts the stored tensors by dtype, and a line is logged where that is not ``dtype``. Raises
    UserError for a model that is not whole: tensors missing, not expected, of another shape, of integers in place of
    floating ones, not finite.
    """
    stored = model_files.check(folder, "model.path")
    planned = _planned(folder, stored)
    model, report = _load(
        AutoModelForCausalLM,
        folder,
        dtype=dtype,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    with reading("model.path", folder):
        _check_whole(folder, model, planned, stored, report)
    kinds = Counter(FLOATING[tensor.dtype] for tensor in stored.values() if tensor.dtype in FLOATING)
    model.read_from = dict(sorted(kinds.items()))
    wanted = str(dtype).removeprefix("torch.")
    if others := [f"{count} tensors of {kind}" for kind, count in model.read_from.items() if kind != wanted]:
        logger.info("%s: %s read into %s", folder, ", ".join(others), wanted)
    _repair_generation(model, folder)
    return model.to(device).eval()


def _repair_generation(model: Any, folder: Path) -> None:
    """Leave out what transformers refuses to write again (``temperature`` without ``do_sample``, an id of -1): none of
    it is used here but the ids."""
    inherited = getattr(model, "generation_config", None)
    if inherited is None:
        return
    try:
        inherited.validate(strict=True)
    except ValueError as error:
        model.generation_config = GenerationConfig(
            **{
                key: value
                for key in _GENERATION_IDS
                if (value := _valid_ids(getattr(inherited, key, None))) is not None
            }
        )
        logger.warning(
            "%s/generation_config.json could not be saved with a model (%s): its ids alone are kept",
            folder,
            reason(error),
        )


def _valid_ids(given: Any) -> Any:
    """A token id or a list of them without negative ones; None where nothing is left."""
    if isinstance(given, list):
        return [number for number in given if isinstance(number, int) and number >= 0] or None
    return given if isinstance(given, int) and given >= 0 else None


def check_saving(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Try at the start what the end of a job needs: everything that is saved beside the weights. Raises UserError."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            for part in (model.config, getattr(model, "generation_config", None), tokenizer):
                if part is not None:
                    part.save_pretrained(scratch)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise UserError(f"model.path: what {folder} holds could not be saved again: {reason(error)}") from error


def skeleton(folder: Path) -> Any:
    """The model that a folder's configuration describes, float32, without values (on torch's meta device)."""
    config = _load(AutoConfig, folder)
    with reading("model.path", folder), _silent(), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False).eval()


def _planned(folder: Path, stored: dict[str, Stored]) -> Any:
    """The skeleton. Raises UserError where the files cannot hold that much."""
    planned = skeleton(folder)
    parts = {id(part): part for part in (*planned.parameters(), *planned.buffers())}
    needed = sum(part.numel() * 4 for part in parts.values())
    given = sum(4 * torch.Size(tensor.shape).numel() for tensor in stored.values())
    if needed > 2 * given + _SPARE:
        differ = {
            name: part.shape
            for name, part in planned.state_dict().items()
            if name in stored and part.shape != stored[name].shape
        }
        named = listed(
            "mis-shaped", (f"{name}: {list(stored[name].shape)} for {list(shape)}" for name, shape in differ.items())
        )
        raise UserError(
            f"model.path: {folder}: config.json asks for {needed:.3g} bytes of float32, the files hold {given:.3g}:"
            f" {named}"
        )
    return planned


def _check_whole(folder: Path, model: Any, planned: Any, stored: dict[str, Stored], report: dict[str, Any]) -> None:
    """Every value of the model comes from its files, as it stands there. Raises UserError with all that is wrong."""
    values = dict(model.named_parameters()) | dict(model.state_dict())
    shapes = (f"{name}: {list(there)} for {list(here)}" for name, there, here in report["mismatched_keys"])
    untied = planned.all_tied_weights_keys.keys() - model.all_tied_weights_keys.keys()
    kinds = {
        "missing": report["missing_keys"],
        "unexpected": report["unexpected_keys"],
        "mis-shaped": shapes,
        "integer": _integers(values, stored),
        "doubly stored": (f"{name}: tied by config.json, and stored with other values" for name in untied),
        "non-finite": _not_finite(model),
    }
    faults = [listed(kind, names) for kind, names in ((kind, list(names)) for kind, names in kinds.items()) if names]
    if faults:
        raise UserError(f"model.path: {folder} is not whole: {'; '.join(faults)}")


def _integers(values: dict[str, torch.Tensor], stored: dict[str, Stored]) -> list[str]:
    """Stored integers that became floating values, which transformers casts without a word."""
    found = []
    for name, tensor in stored.items():
        if tensor.dtype not in FLOATING:
            targets = [
                value
                for other, value in values.items()
                if f".{other}".endswith(f".{name}") or f".{name}".endswith(f".{other}")
            ]
            if any(value.is_floating_point() for value in targets):
                found.append(f"{name}: {tensor.dtype} in {tensor.file}")
    return found


def _not_finite(model: Any) -> list[str]:
    """Parameters, kept buffers and rotary frequencies with a NaN or an infinity; a tied one once."""
    values = {id(value): (name, value) for name, value in reversed(list(model.state_dict(keep_vars=True).items()))}
    tables = [(name, value) for name, value in model.named_buffers() if re.search(r"inv_freq$", name)]
    return [
        name
        for name, value in (*values.values(), *tables)
        if value.is_floating_point() and not torch.isfinite(value).all()
    ]


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer saved beside a model; padding falls back to the end token, which no mask ever counts as padding.

    Raises UserError for one whose ids the model has no embeddings for.
    """
    tokenizer: PreTrainedTokenizerBase = _load(AutoTokenizer, folder)
    with reading("model.path", folder):
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        _check_ids(tokenizer, folder)
    return tokenizer


def _check_ids(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    rows = getattr(text_config(folder), "vocab_size", None)
    added = tokenizer.get_added_vocab()
    ids = [number for token, number in tokenizer.get_vocab().items() if token not in added]
    ids += [
        number
        for number in (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id)
        if number is not None
    ]
    if rows is not None and (not ids or not 0 <= min(ids) <= max(ids) < rows):
        given = f"{min(ids)} … {max(ids)}" if ids else "none"
        raise UserError(
            f"model.path: the tokenizer in {folder} has the ids {given}, the model has embeddings for 0 … {rows - 1}"
        )


def save_model(
    model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, beside: dict[str, Any] | None = None
) -> None:
    """Weights as safetensors, configuration and tokenizer, and the JSON files ``beside``: each file whole or not at
    all.

    The weights come last: a folder that has them has everything.
    """
    with partial_folder(folder) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        for title, value in (beside or {}).items():
            write_json(partial / title, value)
        install(partial, folder)
