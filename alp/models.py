"""Causal language models and tokenizers as files: build the embedded ones, load, save. The only module that loads weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging as transformers_logging

from alp.errors import UserError
from alp.reproducibility import install, partial_folder, write_json
from alp.schema_models import Model as ModelConfig

PAD, EOS = "<pad>", "<eos>"
transformers_logging.disable_progress_bar()  # a bar per loaded file is noise in a job's log


def resolve_device(name: str) -> torch.device:
    """``auto`` is the GPU where there is one. Raises UserError when cuda is asked for and absent."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device 'cuda' asked for, but torch sees no GPU here; did you mean 'cpu' (or 'auto')?")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def character_tokenizer(alphabet: str) -> PreTrainedTokenizerFast:
    """One id per character of ``alphabet``, after padding (0) and end of sequence (1).

    Any other character is lost in encoding: ``alp.rollout.contract`` refuses prompts that hold one.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: index for index, token in enumerate([PAD, EOS, *alphabet])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS)


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


def check_folder(path: str | None, key: str = "model.path") -> Path:
    """The folder of a saved model. Raises UserError with what is missing and the nearest folder that exists."""
    if path is None:
        raise UserError(f"{key}: no model given; make the embedded one with `alp pretrain`, then pass {key}=<its run.dir>/model")
    folder = Path(path)
    for name in ("config.json", "*.safetensors", "tokenizer_config.json"):
        if not any(folder.glob(name)):
            parent = next(above for above in [folder, *folder.parents] if above.is_dir())
            raise UserError(f"{key}: no model in {folder} (no {name}); the nearest folder that exists is {parent}")
    return folder


def _load(kind: Any, folder: Path, **options: Any) -> Any:
    """Read what ``save_pretrained`` wrote. Raises UserError for a model that comes with code of its own."""
    try:
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise UserError(f"model.path: {folder} cannot be read as it is: it brings code of its own, which is never run") from None


def check_model(model: ModelConfig) -> Path:
    """``check_folder`` of a configured model; without a folder the error says which command makes one."""
    if model.path is None and model.source is not None:
        raise UserError(
            f"model.path: no folder with {model.name}; get it with `alp fetch model={model.name}`, then pass model.path=<its run.dir>/model"
        )
    return check_folder(model.path)


def checkpoint_layers(model: Any) -> int:
    """Compute the layers' activations again in the backward pass; returns how many do. Raises UserError where a model cannot.

    transformers checkpoints in training mode alone. That mode is set on the layers themselves, not on the parts inside them: dropout
    stays off, a policy has one distribution.
    """
    try:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    except ValueError as error:
        raise UserError(f"model.gradient_checkpointing: {error}") from None
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise UserError(f"model.gradient_checkpointing: {type(model).__name__} has no layers that transformers can compute again")
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
    """The model in ``dtype``, in evaluation mode (no dropout: a policy has one distribution)."""
    model = _load(AutoModelForCausalLM, folder, dtype=dtype, use_safetensors=True)
    return model.to(device).eval()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer saved beside a model; padding falls back to the end token, which no mask ever counts as padding."""
    tokenizer: PreTrainedTokenizerBase = _load(AutoTokenizer, folder)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def save_model(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, beside: dict[str, Any] | None = None) -> None:
    """Weights as safetensors, configuration and tokenizer, and the JSON files ``beside``: each file whole or not at all.

    The weights come last: a folder that has them has everything.
    """
    with partial_folder(folder) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        for title, value in (beside or {}).items():
            write_json(partial / title, value)
        install(partial, folder)
