"""Deterministic attention: which kernels are allowed, the strict backward, and no other bit on a CPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from alp.training import attention
from alp.training.job import Job
from alp.training.loop import train
from alp.training.settings_report import check_active, describe_active

Make = Callable[..., Any]
WORD = "trainer.deterministic_attention=true"


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # as every job does
    yield
    torch.backends.cuda.enable_cudnn_sdp(before)


class _Watched(torch.autograd.Function):
    """Hands its input on; its backward notes torch's mode."""

    modes: ClassVar[list[tuple[bool, bool]]] = []

    @staticmethod
    def forward(_ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(_ctx: Any, grad: Tensor) -> Tensor:
        mode = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        _Watched.modes.append(mode)
        return grad


def test_strict_inside_and_as_before_outside() -> None:
    value = torch.ones(2, requires_grad=True)
    for enabled in (True, False):
        with attention.strict(enabled):
            _Watched.apply(value).sum().backward()  # type: ignore[no-untyped-call]
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert _Watched.modes == [(True, False), (True, True)]
    with pytest.raises(ZeroDivisionError), attention.strict(True):
        raise ZeroDivisionError
    assert torch.is_deterministic_algorithms_warn_only_enabled()


def test_the_same_bits_on_a_cpu(train_config: Make, tmp_path: Path) -> None:
    """Noise, recomputed layers and logits in the backward included; and active.json says what may run."""
    both = ["method=seq_alp", "model.gradient_checkpointing=true", "trainer.logits_chunk=5"]
    for folder, words in {"plain": [], "strict": [WORD]}.items():
        train(train_config(*both, "trainer.kl=0.1", "trainer.steps=2", *words, folder=folder))
    for name in ("metrics.jsonl", "model/model.safetensors"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "strict" / name).read_bytes()
    plain, strict = (
        json.loads((tmp_path / folder / "active.json").read_text(encoding="utf-8")) for folder in ("plain", "strict")
    )
    assert "cudnn" in plain["attention_kernels"]
    assert strict["attention_kernels"] == ["flash", "mem_efficient", "math"]
    assert (plain["attention_backward"], strict["attention_backward"]) == ("not strict", "strict")


def test_cudnn_let_in_again_stops_the_job(train_config: Make, tmp_path: Path) -> None:
    job = Job(train_config(WORD), tmp_path / "run")
    torch.backends.cuda.enable_cudnn_sdp(True)
    with pytest.raises(RuntimeError, match="attention without cuDNN's: False is active"):
        check_active(job.config, describe_active(job.config, job.engine, job.model, job.updater))
    job.close()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: attention's kernels differ there alone")
@pytest.mark.parametrize("masked", [False, True])
def test_two_backwards_on_a_gpu_give_the_same_bits(masked: bool) -> None:
    attention.choose(deterministic=True)
    torch.manual_seed(0)
    query, key, value = (torch.randn(4, 12, 1024, 128, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    mask = torch.ones(1024, 1024, dtype=torch.bool, device="cuda").tril() if masked else None
    gradients = []
    for _ in range(2):
        leaves = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
        out = torch.nn.functional.scaled_dot_product_attention(*leaves, attn_mask=mask, is_causal=not masked)
        with attention.strict(True):
            out.float().square().sum().backward()
        gradients.append(torch.cat([leaf.grad.flatten() for leaf in leaves if leaf.grad is not None]))
    assert torch.equal(*gradients)
