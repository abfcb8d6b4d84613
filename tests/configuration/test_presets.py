"""The preset table of the method specification (§5), written out by hand, against the YAML; and the controls."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from torch import Tensor

from alp import presets
from alp.configuration import compose
from alp.errors import UserError
from alp.policy import Correction, LossInputs, Method, Perturbation, group_advantages
from alp.policy.composition import count

# name: numerator, denominator, level, clip low, clip high, dual clip, corrections (kind, level, upper, lower)
TABLE = {
    "grpo": ("current", "old", "token", 0.2, 0.28, 10, []),
    "gspo": ("current", "old", "sequence_geometric", 3e-4, 4e-4, 100, []),
    "token_bypass": ("current", "rollout", "token", 0.2, 0.28, 10, []),
    "seq_bypass": ("current", "rollout", "sequence", 0.5, 3.0, 10, []),
    "token_tis": (
        "current",
        "old",
        "token",
        0.2,
        0.28,
        10,
        [Correction("truncate", "token", 2.0)],
    ),
    "seq_tis": (
        "current",
        "old",
        "sequence",
        0.5,
        3.0,
        10,
        [Correction("truncate", "sequence", 5.0)],
    ),
    "token_mis": (
        "current",
        "old",
        "token",
        0.2,
        0.28,
        10,
        [Correction("mask", "sequence", 3.0, 0.0)],
    ),
    "seq_mis": (
        "current",
        "old",
        "sequence",
        0.5,
        3.0,
        10,
        [Correction("mask", "sequence", 2.0, 0.0)],
    ),
    "token_alp": ("perturbed", "rollout", "token", 0.5, 3.0, 10, []),
    "seq_alp": ("perturbed", "rollout", "sequence", 0.5, 3.0, 10, []),
}


def _load(*words: str) -> Method:
    loaded: Method = compose.load("train", list(words)).method
    return loaded


def test_presets_by_themselves_are_those_of_whole_configurations() -> None:
    names = compose.choices("method")
    assert presets.known() == tuple(compose.load("train", [f"method={name}"]).method for name in names)


def test_the_ten_presets_of_the_specification_are_there() -> None:
    assert set(TABLE) <= set(compose.choices("method"))


@pytest.mark.parametrize("name", sorted(TABLE))
def test_preset_is_the_specified_one(name: str) -> None:
    method = _load(f"method={name}")
    ratio = (method.numerator, method.denominator, method.level)
    assert (*ratio, method.clip_low, method.clip_high, method.dual_clip, method.corrections) == TABLE[name]
    assert (method.name, method.loss_form, method.aggregation) == (name, "clip", "token-mean")
    assert (method.perturbation is not None) == (name in ("token_alp", "seq_alp"))
    if method.perturbation is not None:
        noise = method.perturbation
        assert (noise.layers, noise.std, noise.learnable, noise.lr, noise.std_min, noise.std_max) == (
            "all",
            0.02,
            True,
            0.01,
            1e-8,
            1.0,
        )


@pytest.mark.parametrize("level", ["token", "seq"])
def test_sigma0_differs_from_alp_in_sigma_alone(level: str) -> None:
    plain, control = (
        asdict(_load(f"method={level}_alp")),
        asdict(_load(f"method={level}_alp", "variant=sigma0")),
    )
    assert control["perturbation"].pop("std") == 0.0
    plain["perturbation"].pop("std")
    assert control == plain


@pytest.mark.parametrize("level", ["token", "seq"])
@pytest.mark.parametrize(
    ("variant", "changed"),
    [
        ("relative", {"scale": "relative", "std": 0.01}),
        ("skip_first", {"layers": "1:"}),
        ("authors", {"weight_decay": 0.01, "in_global_norm": True, "dtype": "hidden"}),
        ("sigma0", {"std": 0.0}),
        ("fixed_sigma", {"learnable": False}),
    ],
)
def test_noise_variants_change_the_noise_alone(level: str, variant: str, changed: dict[str, object]) -> None:
    plain = asdict(_load(f"method={level}_alp"))
    job = compose.load("train", [f"method={level}_alp", f"variant={variant}"])
    assert asdict(job.method) == plain | {"perturbation": plain["perturbation"] | changed}
    assert job.run.arm == f"{level}_alp-{variant}"


@pytest.mark.parametrize("variant", ["relative", "skip_first", "authors", "sigma0", "fixed_sigma"])
@pytest.mark.parametrize("method", sorted(name for name in TABLE if not name.endswith("alp")))
def test_noise_variants_of_methods_without_noise_are_refused(method: str, variant: str) -> None:
    with pytest.raises(UserError, match=f"method '{method}' has no perturbation: choose token_alp or seq_alp"):
        _load(f"method={method}", f"variant={variant}")


@pytest.mark.parametrize("word", ["1:", ":2", "-2:", "1:-1", "1:3"])
def test_bands_of_a_command_line(word: str) -> None:
    noise = _load("method=seq_alp", f"method.perturbation.layers={word}").perturbation
    assert noise is not None
    assert noise.layers == word
    noise.check_depth(3)


@pytest.mark.parametrize(("word", "depth"), [("1:", 1), ("3:", 3), (":4", 3), ("-4:", 3), (":-3", 3)])
def test_a_band_outside_the_model_is_refused(word: str, depth: int) -> None:
    noise = Perturbation(layers=word)
    with pytest.raises(
        ValueError, match=rf"^method\.perturbation\.layers: band {word} is empty or outside the model's"
    ):
        noise.check_depth(depth)
    noise.check_depth(5)


def test_fixed_sigma_and_common_clip_ranges() -> None:
    assert _load("method=seq_alp", "variant=fixed_sigma").perturbation.learnable is False  # type: ignore[union-attr]
    for name in TABLE:
        for variant, clip in (("clip_tight", (0.2, 0.28)), ("clip_wide", (0.5, 3.0))):
            method = _load(f"method={name}", f"variant={variant}")
            assert (method.clip_low, method.clip_high) == clip


def test_identity_ignores_where_results_go_and_nothing_else() -> None:
    base = compose.identity(compose.load("train", ["run.dir=a"]))
    assert compose.identity(compose.load("train", ["run.dir=b", "run.grid=x"])) == base
    assert compose.identity(compose.load("train", ["model.path=/a", "task.data=/b"])) == base, (
        "files count by content, not by place"
    )
    for word in ("trainer.seed=1", "method=gspo", "trainer.lr=2e-4", "task.seed=1", "rollout.dtype=float32"):
        assert compose.identity(compose.load("train", [word])) != base


def _gradient(
    method: Method,
    current: Tensor,
    old: Tensor,
    rollout: Tensor,
    mask: Tensor,
    advantages: Tensor,
    pieces: list[Tensor],
) -> tuple[float, Tensor]:
    """Loss and gradient in ``current`` of a preset, summed over ``pieces`` of rows that share the mini-batch's
    normaliser."""
    leaf = current.clone().requires_grad_()
    corrected = method.correct(old, rollout, mask)
    counts = count(method, corrected.mask)
    total = torch.zeros((), dtype=torch.float64)
    for rows in pieces:
        inputs = LossInputs(
            log_probs=leaf[rows],
            old_log_probs=old[rows],
            rollout_log_probs=rollout[rows],
            response_mask=mask[rows],
            advantages=advantages[rows],
            weights=corrected.weights[rows],
            loss_mask=corrected.mask[rows],
            counts=counts,
        )
        total = total + method.loss(inputs).loss
    (gradient,) = torch.autograd.grad(total, leaf)
    return float(total.detach()), gradient


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """12 sequences in 3 groups, holes, an empty row and one without advantage; log-probs of μ in float64."""
    generator = torch.Generator().manual_seed(4)
    mask = torch.rand(12, 9, generator=generator) < 0.8
    mask[5] = False
    rewards = torch.randint(2, (12,), generator=generator).double()
    rewards[8:] = 1.0
    return {
        "rollout": -3 * torch.rand(12, 9, generator=generator, dtype=torch.float64),
        "mask": mask,
        "advantages": group_advantages(rewards, torch.arange(3).repeat_interleave(4)),
    }


@pytest.mark.parametrize("name", sorted(TABLE))
def test_every_preset_on_policy_is_reinforce(name: str, batch: dict[str, Tensor]) -> None:
    """A clip range, a correction or a level that acts where there is nothing to correct."""
    same = batch["rollout"]
    _, gradient = _gradient(_load(f"method={name}"), same, same, pieces=[torch.arange(12)], **batch)
    expected = torch.where(batch["mask"], -batch["advantages"][:, None] / batch["mask"].sum(), 0.0)
    assert torch.allclose(gradient, expected, rtol=1e-12, atol=1e-15)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("name", sorted(TABLE))
def test_splitting_and_shuffling_a_mini_batch_change_nothing(name: str, batch: dict[str, Tensor]) -> None:
    """A normaliser, a weight or a mask of the piece in place of the mini-batch's, for each preset as it is."""
    method, generator = _load(f"method={name}"), torch.Generator().manual_seed(5)
    old = batch["rollout"] + 0.2 * torch.randn(12, 9, generator=generator, dtype=torch.float64)
    current = old + 0.2 * torch.randn(12, 9, generator=generator, dtype=torch.float64)
    loss, gradient = _gradient(method, current, old, pieces=[torch.arange(12)], **batch)
    assert gradient.abs().sum() > 0
    order = torch.randperm(12, generator=generator)
    for pieces in ([torch.arange(6), torch.arange(6, 12)], [*torch.arange(12)[:, None]], [order], list(order.split(5))):
        value, shuffled = _gradient(method, current, old, pieces=pieces, **batch)
        assert value == pytest.approx(loss, rel=1e-12)
        assert torch.allclose(shuffled, gradient, rtol=1e-12, atol=1e-15)
