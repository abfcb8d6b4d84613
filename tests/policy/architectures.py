"""Tiny random models of every causal-LM architecture that is tested, by model type; docs/architectures.md lists the
same."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from .models import VOCABULARY

LOCK = Path(__file__).parents[2] / "locks" / "cpu.txt"
DEPTH, WIDTH = 3, 32
BY_LENGTH = "with its cache, prompts of one length at a time"
RECOMPUTED = "without a cache: slow"

# The small value of every field that some configuration calls by this name; a configuration takes those it has.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "n_words", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "n_embed", "word_embed_proj_dim", "embedding_size"), WIDTH),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), DEPTH
    ),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads", "encoder_attention_heads"), 4
    ),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner", "dff"), 48),
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "max_seq_len", "model_max_length", "max_target_positions"), 64
    ),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 16),
    **dict.fromkeys(("initializer_range", "init_std", "initializer_factor"), 0.2),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "head_dim", "v_head_dim"), 8),
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DECODER: dict[str, Any] = {"is_decoder": True}  # of models that are encoders unless told
LATENT: dict[str, Any] = {"num_key_value_heads": 4, "head_dim": None}  # latent attention sets its own head size
DELTA: dict[str, Any] = {
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
MAMBA: dict[str, Any] = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}
VISION: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": DEPTH,  # as many as text layers: they must not be taken for them
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}


@dataclass(frozen=True)
class Architecture:
    """What is expected of one model type, and the fields of its configuration that SIZES does not cover (None: leave it
    out)."""

    model_class: str
    layers: str = "model.layers"
    sizes: dict[str, Any] = field(default_factory=dict)
    checkpointing: bool = True  # whether transformers can checkpoint it at all
    reentrant: bool = (
        True  # whether it stands reentrant checkpointing, which Zamba nests around tensors passed by keyword
    )
    samples: str = "with its cache"  # how the HF engine samples what the trainer scores (alp.rollout.decoding)
    float64: bool = False  # computes in float64 throughout; others take their norms, softmaxes or decays in float32


ARCHITECTURES: dict[str, Architecture] = {
    "afmoe": Architecture("AfmoeForCausalLM"),
    "apertus": Architecture("ApertusForCausalLM"),
    "arcee": Architecture("ArceeForCausalLM"),
    "aria_text": Architecture("AriaTextForCausalLM"),
    "axk1": Architecture("AXK1ForCausalLM", sizes=LATENT),
    "axk2": Architecture("AXK2ForCausalLM", sizes=LATENT),
    "bamba": Architecture("BambaForCausalLM", sizes=MAMBA | {"attn_layer_indices": [1]}),
    "bart": Architecture("BartForCausalLM", "model.decoder.layers", float64=True, samples=BY_LENGTH),
    "bert": Architecture("BertLMHeadModel", "bert.encoder.layer", sizes=DECODER, float64=True),
    "bert-generation": Architecture("BertGenerationDecoder", "bert.encoder.layer", sizes=DECODER),
    "big_bird": Architecture(
        "BigBirdForCausalLM", "bert.encoder.layer", sizes=DECODER | {"attention_type": "original_full"}
    ),
    "bigbird_pegasus": Architecture("BigBirdPegasusForCausalLM", "model.decoder.layers", samples=BY_LENGTH),
    "biogpt": Architecture("BioGptForCausalLM", "biogpt.layers"),
    "bitnet": Architecture("BitNetForCausalLM"),
    "blenderbot": Architecture("BlenderbotForCausalLM", "model.decoder.layers", samples=BY_LENGTH),
    "blenderbot-small": Architecture("BlenderbotSmallForCausalLM", "model.decoder.layers", samples=BY_LENGTH),
    "bloom": Architecture("BloomForCausalLM", "transformer.h"),
    "camembert": Architecture("CamembertForCausalLM", "roberta.encoder.layer", sizes=DECODER, samples=RECOMPUTED),
    "codegen": Architecture("CodeGenForCausalLM", "transformer.h", sizes={"rotary_dim": 4}),
    "cohere": Architecture("CohereForCausalLM"),
    "cohere2": Architecture("Cohere2ForCausalLM"),
    "cohere2_moe": Architecture("Cohere2MoeForCausalLM"),
    "ctrl": Architecture("CTRLLMHeadModel", "transformer.h", checkpointing=False, float64=True),
    "cwm": Architecture("CwmForCausalLM"),
    "data2vec-text": Architecture(
        "Data2VecTextForCausalLM", "data2vec_text.encoder.layer", sizes=DECODER, samples=RECOMPUTED
    ),
    "dbrx": Architecture(
        "DbrxForCausalLM",
        "transformer.blocks",
        sizes={
            "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
            "ffn_config": {"hidden_size": WIDTH, "ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
        },
    ),
    "deepseek_v2": Architecture("DeepseekV2ForCausalLM", sizes=LATENT | {"topk_method": "greedy"}),
    "deepseek_v3": Architecture("DeepseekV3ForCausalLM", sizes=LATENT),
    "deepseek_v32": Architecture("DeepseekV32ForCausalLM", sizes=LATENT),
    "diffllama": Architecture("DiffLlamaForCausalLM"),
    "doge": Architecture("DogeForCausalLM"),
    "dots1": Architecture("Dots1ForCausalLM", sizes={"n_group": 1, "n_shared_experts": 1}),
    "electra": Architecture("ElectraForCausalLM", "electra.encoder.layer", sizes=DECODER | {"embedding_size": 16}),
    "ernie": Architecture("ErnieForCausalLM", "ernie.encoder.layer", sizes=DECODER),
    "ernie4_5": Architecture("Ernie4_5ForCausalLM"),
    "ernie4_5_moe": Architecture("Ernie4_5_MoeForCausalLM", sizes={"moe_k": 2}),
    "exaone4": Architecture("Exaone4ForCausalLM"),
    "exaone_moe": Architecture("ExaoneMoeForCausalLM"),
    "falcon": Architecture(
        "FalconForCausalLM", "transformer.h", sizes={"num_kv_heads": 2, "new_decoder_architecture": True}, float64=True
    ),
    "falcon_h1": Architecture("FalconH1ForCausalLM", sizes=MAMBA | {"mamba_d_ssm": 64}),
    "falcon_mamba": Architecture("FalconMambaForCausalLM", "backbone.layers", samples=BY_LENGTH),
    "flex_olmo": Architecture("FlexOlmoForCausalLM"),
    "gemma": Architecture("GemmaForCausalLM"),
    "gemma2": Architecture("Gemma2ForCausalLM"),
    "gemma3": Architecture(
        "Gemma3ForConditionalGeneration",
        "model.language_model.layers",
        sizes={"text_config": TEXT, "vision_config": VISION, "mm_tokens_per_image": 4},
    ),
    "gemma3_text": Architecture("Gemma3ForCausalLM"),
    "gemma4": Architecture(
        "Gemma4ForConditionalGeneration",
        "model.language_model.layers",
        sizes={
            "text_config": (
                TEXT | {"head_dim": 16, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY}
            ),
            "vision_config": None,
        },
    ),
    "gemma4_text": Architecture("Gemma4ForCausalLM", sizes={"head_dim": 16, "hidden_size_per_layer_input": 8}),
    "git": Architecture("GitForCausalLM", "git.encoder.layer", sizes={"vision_config": VISION}, samples=BY_LENGTH),
    "glm": Architecture("GlmForCausalLM"),
    "glm4": Architecture("Glm4ForCausalLM"),
    "glm4_moe": Architecture("Glm4MoeForCausalLM"),
    "glm4_moe_lite": Architecture("Glm4MoeLiteForCausalLM", sizes=LATENT),
    "glm_moe_dsa": Architecture("GlmMoeDsaForCausalLM", sizes=LATENT),
    "gpt-sw3": Architecture("GPT2LMHeadModel", "transformer.h"),
    "gpt2": Architecture("GPT2LMHeadModel", "transformer.h", float64=True),
    "gpt_bigcode": Architecture("GPTBigCodeForCausalLM", "transformer.h"),
    "gpt_neo": Architecture(
        "GPTNeoForCausalLM",
        "transformer.h",
        sizes={"attention_types": [[["global", "local", "global"], 1]], "window_size": 4},
    ),
    "gpt_neox": Architecture("GPTNeoXForCausalLM", "gpt_neox.layers"),
    "gpt_neox_japanese": Architecture("GPTNeoXJapaneseForCausalLM", "gpt_neox_japanese.layers", checkpointing=False),
    "gpt_oss": Architecture("GptOssForCausalLM"),
    "gptj": Architecture("GPTJForCausalLM", "transformer.h", sizes={"rotary_dim": 4}),
    "granite": Architecture("GraniteForCausalLM"),
    "granite_swa": Architecture("GraniteSWAForCausalLM"),
    "granitemoe": Architecture("GraniteMoeForCausalLM"),
    "granitemoe_swa": Architecture("GraniteMoeSWAForCausalLM"),
    "granitemoehybrid": Architecture(
        "GraniteMoeHybridForCausalLM", sizes=MAMBA | {"layer_types": ["mamba", "attention", "mamba"]}
    ),
    "granitemoeshared": Architecture("GraniteMoeSharedForCausalLM"),
    "helium": Architecture("HeliumForCausalLM"),
    "hunyuan_v1_dense": Architecture("HunYuanDenseV1ForCausalLM"),
    "hunyuan_v1_moe": Architecture("HunYuanMoEV1ForCausalLM"),
    "hy_v3": Architecture("HYV3ForCausalLM"),
    "hyperclovax": Architecture("HyperCLOVAXForCausalLM"),
    "inkling_text": Architecture(
        "InklingForCausalLM",
        sizes={"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8, "rel_extent": 16},
    ),
    "jais2": Architecture("Jais2ForCausalLM"),
    "jamba": Architecture("JambaForCausalLM", samples=RECOMPUTED),
    "jetmoe": Architecture("JetMoeForCausalLM", checkpointing=False),
    "kimi_linear": Architecture(
        "KimiLinearForCausalLM",
        sizes={
            "num_key_value_heads": 4,
            "head_dim": None,
            "q_lora_rank": None,
            "n_group": None,
            "linear_head_dim": 8,
            "linear_num_heads": 4,
            "layer_types": DELTA["layer_types"],
        },
    ),
    "laguna": Architecture("LagunaForCausalLM"),
    "lfm2": Architecture("Lfm2ForCausalLM"),
    "lfm2_moe": Architecture(
        "Lfm2MoeForCausalLM", sizes={"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1}
    ),
    "llama": Architecture("LlamaForCausalLM"),
    "llama4_text": Architecture("Llama4ForCausalLM"),
    "mamba": Architecture("MambaForCausalLM", "backbone.layers", samples=BY_LENGTH),
    "mamba2": Architecture(
        "Mamba2ForCausalLM", "backbone.layers", sizes={"num_heads": 8, "n_groups": 1, "state_size": 8}
    ),
    "marian": Architecture("MarianForCausalLM", "model.decoder.layers", samples=BY_LENGTH),
    "mbart": Architecture("MBartForCausalLM", "model.decoder.layers", samples=BY_LENGTH),
    "megatron-bert": Architecture("MegatronBertForCausalLM", "bert.encoder.layer", sizes=DECODER),
    "mellum": Architecture("MellumForCausalLM"),
    "mimo_v2_flash": Architecture("MiMoV2FlashForCausalLM"),
    "minicpm3": Architecture("MiniCPM3ForCausalLM", sizes=LATENT),
    "minimax": Architecture("MiniMaxForCausalLM", samples=RECOMPUTED),
    "minimax_m2": Architecture("MiniMaxM2ForCausalLM"),
    "minimax_m3_vl_text": Architecture("MiniMaxM3VLForCausalLM"),
    "ministral": Architecture("MinistralForCausalLM"),
    "ministral3": Architecture("Ministral3ForCausalLM"),
    "mistral": Architecture("MistralForCausalLM"),
    "mixtral": Architecture("MixtralForCausalLM"),
    "modernbert-decoder": Architecture("ModernBertDecoderForCausalLM"),
    "moshi": Architecture("MoshiForCausalLM"),
    "mpt": Architecture("MptForCausalLM", "transformer.blocks"),
    "mvp": Architecture("MvpForCausalLM", "model.decoder.layers", samples=BY_LENGTH),
    "nanochat": Architecture("NanoChatForCausalLM"),
    "nemotron": Architecture("NemotronForCausalLM"),
    "nemotron_h": Architecture(
        "NemotronHForCausalLM",
        sizes={
            "layers_block_type": ["mamba", "attention", "moe"],
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "ssm_state_size": 8,
            "n_groups": 2,
            "moe_shared_expert_intermediate_size": 16,
            "n_group": 1,
        },
        samples=RECOMPUTED,
    ),
    "olmo": Architecture("OlmoForCausalLM"),
    "olmo2": Architecture("Olmo2ForCausalLM"),
    "olmo3": Architecture("Olmo3ForCausalLM"),
    "olmo_hybrid": Architecture("OlmoHybridForCausalLM", sizes=DELTA),
    "olmoe": Architecture("OlmoeForCausalLM"),
    "openai-gpt": Architecture(
        "OpenAIGPTLMHeadModel", "transformer.h", checkpointing=False, float64=True, samples=RECOMPUTED
    ),
    "opt": Architecture("OPTForCausalLM", "model.decoder.layers"),
    "pegasus": Architecture("PegasusForCausalLM", "model.decoder.layers", samples=BY_LENGTH),
    "persimmon": Architecture("PersimmonForCausalLM"),
    "phi": Architecture("PhiForCausalLM"),
    "phi3": Architecture("Phi3ForCausalLM"),
    "plbart": Architecture("PLBartForCausalLM", "model.decoder.layers", samples=BY_LENGTH),
    "qwen2": Architecture("Qwen2ForCausalLM"),
    "qwen2_moe": Architecture("Qwen2MoeForCausalLM"),
    "qwen3": Architecture("Qwen3ForCausalLM"),
    "qwen3_5_moe_text": Architecture("Qwen3_5MoeForCausalLM", sizes=DELTA),
    "qwen3_5_text": Architecture("Qwen3_5ForCausalLM", sizes=DELTA),
    "qwen3_moe": Architecture("Qwen3MoeForCausalLM"),
    "qwen3_next": Architecture("Qwen3NextForCausalLM", sizes=DELTA),
    "recurrent_gemma": Architecture("RecurrentGemmaForCausalLM", samples=RECOMPUTED),
    "rembert": Architecture(
        "RemBertForCausalLM",
        "rembert.encoder.layer",
        sizes=DECODER | {"input_embedding_size": 16, "output_embedding_size": 16},
    ),
    "roberta": Architecture("RobertaForCausalLM", "roberta.encoder.layer", sizes=DECODER, samples=RECOMPUTED),
    "roberta-prelayernorm": Architecture(
        "RobertaPreLayerNormForCausalLM", "roberta_prelayernorm.encoder.layer", sizes=DECODER, samples=RECOMPUTED
    ),
    "roc_bert": Architecture(
        "RoCBertForCausalLM",
        "roc_bert.encoder.layer",
        sizes=DECODER
        | {
            "pronunciation_vocab_size": 50,
            "pronunciation_embed_dim": 8,
            "shape_vocab_size": 50,
            "shape_embed_dim": 8,
        },
    ),
    "roformer": Architecture("RoFormerForCausalLM", "roformer.encoder.layer", sizes=DECODER),
    "rwkv": Architecture("RwkvForCausalLM", "rwkv.blocks", samples=RECOMPUTED),
    "seed_oss": Architecture("SeedOssForCausalLM"),
    "smollm3": Architecture("SmolLM3ForCausalLM"),
    "solar_open": Architecture("SolarOpenForCausalLM"),
    "stablelm": Architecture("StableLmForCausalLM"),
    "starcoder2": Architecture("Starcoder2ForCausalLM"),
    "trocr": Architecture("TrOCRForCausalLM", "model.decoder.layers", samples=BY_LENGTH),
    "vaultgemma": Architecture("VaultGemmaForCausalLM"),
    "whisper": Architecture("WhisperForCausalLM", "model.decoder.layers"),
    "xglm": Architecture("XGLMForCausalLM"),
    "xlm-roberta": Architecture("XLMRobertaForCausalLM", "roberta.encoder.layer", sizes=DECODER, samples=RECOMPUTED),
    "xlm-roberta-xl": Architecture(
        "XLMRobertaXLForCausalLM", "roberta.encoder.layer", sizes=DECODER, samples=RECOMPUTED
    ),
    "xlstm": Architecture(
        "xLSTMForCausalLM",
        "backbone.blocks",
        sizes={"v_head_dim": None, "num_heads": 4, "num_blocks": DEPTH, "embedding_dim": WIDTH},
        samples=RECOMPUTED,
    ),
    "xmod": Architecture(
        "XmodForCausalLM",
        "roberta.encoder.layer",
        sizes=DECODER | {"languages": ["en_XX"], "default_language": "en_XX"},
        samples=RECOMPUTED,
    ),
    "youtu": Architecture("YoutuForCausalLM", sizes=LATENT),
    "zamba": Architecture(
        "ZambaForCausalLM",
        sizes={
            "num_hidden_layers": 6,
            "layers_block_type": ["mamba", "mamba", "hybrid"] * 2,
            "attention_hidden_size": 64,
            "attention_head_dim": 16,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "n_mamba_heads": 2,
        },
        reentrant=False,
    ),
    "zamba2": Architecture(
        "Zamba2ForCausalLM",
        sizes={
            "num_hidden_layers": 6,
            "layers_block_type": ["mamba", "hybrid", "mamba"] * 2,
            "mamba_d_state": 8,
            "mamba_headdim": 16,
            "n_mamba_heads": 4,
            "head_dim": None,
        },
        reentrant=False,
        samples=RECOMPUTED,
    ),
    "zaya": Architecture("ZayaForCausalLM", sizes={"num_experts_per_tok": 1}),
}


@dataclass(frozen=True)
class Refused:
    """A model that is no decoder-only causal language model, or not one with layers that can be told: what the error
    says of it."""

    model_class: str
    says: str
    sizes: dict[str, Any] = field(default_factory=dict)


AXIAL: dict[str, Any] = {"axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 16], "attn_layers": ["local"] * DEPTH}
MLLAMA_ROPE: dict[str, Any] = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
HASHED: dict[str, Any] = {"ngram_vocab_size_base": 100, "make_ngram_vocab_size_divisible_by": 4, "split_ngram_parts": 1}
INDEXER: dict[str, Any] = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
}

REFUSED: tuple[Refused, ...] = (
    Refused("BertModel", "not a causal language model"),
    Refused("BertForMaskedLM", "not a causal language model"),
    Refused("BertLMHeadModel", "an encoder"),
    Refused("RobertaForMaskedLM", "not a causal language model"),
    Refused("RobertaForCausalLM", "an encoder"),
    Refused("LlamaModel", "not a causal language model"),
    Refused("LlamaForSequenceClassification", "not a causal language model"),
    Refused("Gemma3ForCausalLM", "attends both ways", {"use_bidirectional_attention": True}),
    Refused("T5ForConditionalGeneration", "an encoder-decoder", {"d_ff": 48, "d_kv": 8, "num_heads": 4}),
    Refused("BartForConditionalGeneration", "an encoder-decoder"),
    Refused("OPTForCausalLM", "skips layers at random", {"layerdrop": 0.1}),
    Refused("XLNetLMHeadModel", "a permutation language model", {"d_inner": 48, "max_position_embeddings": None}),
    Refused("XLMWithLMHeadModel", "no list of whole decoder layers", {"emb_dim": WIDTH}),
    Refused("FlaubertWithLMHeadModel", "no list of whole decoder layers", {"emb_dim": WIDTH}),
    Refused(
        "ReformerModelWithLMHead",
        "two reversible residual streams",
        AXIAL | {"is_decoder": True, "attention_head_size": 8},
    ),
    Refused(
        "ProphetNetForCausalLM", "several tokens ahead", {"num_decoder_layers": DEPTH, "num_encoder_layers": DEPTH}
    ),
    Refused("CpmAntForCausalLM", "prompt tokens of its own"),
    Refused(
        "Gemma3nForCausalLM",
        "several residual streams",
        {"hidden_size_per_layer_input": 8, "laurel_rank": 8, "num_kv_shared_layers": 0},
    ),
    Refused("DeepseekV4ForCausalLM", "several residual streams"),
    Refused("HYV4ForCausalLM", "several residual streams"),
    Refused(
        "Qwen4ExpForCausalLM",
        "several residual streams",
        TEXT | DELTA | HASHED | INDEXER | {"hc_lowrank": 8, "ple_layer_ids": []},
    ),
    Refused("HrmTextForCausalLM", "runs its layers several times"),
    Refused("MllamaForCausalLM", "skips its cross-attention layers", MLLAMA_ROPE | {"cross_attention_layers": [1]}),
    Refused("LongcatFlashForCausalLM", "cannot tell", {"n_routed_experts": 4, "head_dim": 4, "num_key_value_heads": 4}),
)


REASONS = (
    "The reason is the words of the error. OPT is refused with `layerdrop` above 0, Gemma 3 with"
    " `use_bidirectional_attention`, BERT and RoBERTa as encoders; other\nmodels with the same fields likewise. A model"
    " that runs its layers several times a forward under a field not known here is not recognised."
)


def tables() -> str:
    """What docs/architectures.md says of each, from its first table on."""
    supported = [
        f"| `{name}` | `{entry.model_class}` | `{entry.layers}` | {entry.samples} |"
        for name, entry in sorted(ARCHITECTURES.items())
    ]
    refused = [f"| `{entry.model_class}` | refused | {entry.says} |" for entry in REFUSED]
    return "\n".join(
        (
            "| model type | class | layers | samples = scores |",
            "| --- | --- | --- | --- |",
            *supported,
            "",
            "## Refused",
            "",
            REASONS,
            "",
            "| class | verdict | because |",
            "| --- | --- | --- |",
            *refused,
            "",
        )
    )


def locked_version() -> str:
    """The version of transformers that the project's lock installs."""
    found = re.search(r"^transformers==(\S+)", LOCK.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return found[1]


def config_class(model_type: str) -> type[Any]:
    """The configuration class of a model type. A version of transformers other than the locked one may lack it:
    skip."""
    if model_type not in CONFIG_MAPPING and transformers.__version__ != locked_version():
        pytest.skip(f"transformers {transformers.__version__} has no {model_type}")
    return CONFIG_MAPPING[model_type]  # type: ignore[no-any-return]


def tiny_config(chosen: type[Any], sizes: dict[str, Any]) -> Any:
    """A configuration of a model of a few ten thousand weights, without dropout."""
    fields = inspect.signature(chosen).parameters
    values = {name: value for name, value in SIZES.items() if name in fields}
    values |= {name: 0.0 for name, value in fields.items() if "drop" in name and value.default is not None}
    values |= sizes
    return chosen(**{name: value for name, value in values.items() if value is not None})


def build(model_type: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A random model in training mode; experts one after the other, which float64 needs."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = tiny_config(config_class(model_type), ARCHITECTURES[model_type].sizes)
        model: nn.Module = AutoModelForCausalLM.from_config(
            config, attn_implementation="eager", experts_implementation="eager"
        )
    return model.to(dtype).train()


def build_refused(refused: Refused) -> nn.Module:
    """A random model of a class that is to be refused."""
    if not hasattr(transformers, refused.model_class) and transformers.__version__ != locked_version():
        pytest.skip(f"transformers {transformers.__version__} has no {refused.model_class}")
    chosen = getattr(transformers, refused.model_class)
    model: nn.Module = chosen(tiny_config(chosen.config_class, refused.sizes))
    return model
