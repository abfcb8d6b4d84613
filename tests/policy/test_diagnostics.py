"""`mismatch_diagnostics` and `ratio_diagnostics`: every figure against its definition."""

import math
import statistics
from decimal import Context, Decimal
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from alp.policy import mismatch_diagnostics, ratio_diagnostics, rollout_correction

from . import reference
from .cases import PROPERTY, Case, assert_close, cases, double, orders

EXACT = Context(prec=60, Emin=-(10**6), Emax=10**6)
LARGEST = Fraction(math.expm1(708.0))


def differences(case: Case) -> list[list[float]]:
    """Numerator minus denominator, junk included."""
    rows = zip(case.numerator, case.denominator, strict=True)
    return [[a - b for a, b in zip(p, q, strict=True)] for p, q in rows]


@PROPERTY
@given(case=cases(spread="close", some_valid=True))
def test_mismatch_figures(case: Case) -> None:
    """A sign, a token mean in place of a sequence mean, padding or empty rows that count."""
    figures = mismatch_diagnostics(*case.tensors())
    expected = reference.mismatch_diagnostics(case.numerator, case.denominator, case.mask)
    assert set(expected) <= set(figures)
    for name, value in expected.items():
        assert type(figures[name]) is float, name
        assert_close(figures[name], value, name)


@PROPERTY
@given(case=cases(some_valid=True))
def test_effective_sample_sizes_and_chi2_of_extremes(case: Case) -> None:
    """Weights that overflow, or that are clamped or truncated before the sample size."""
    figures = mismatch_diagnostics(*case.tensors())
    rho = differences(case)
    tokens = [rho[b][t] for b, row in enumerate(case.mask) for t in reference.valid_positions(row)]
    sums = [math.fsum(rho[b][t] for t in reference.valid_positions(row)) for b, row in enumerate(case.mask) if any(row)]
    for values, size, chi2 in (
        (tokens, "rollout_is_eff_sample_size", "chi2_token"),
        (sums, "rollout_is_eff_sample_size_seq", "chi2_seq"),
    ):
        omegas = [Fraction(Decimal(x).exp(EXACT)) for x in values]
        total, squares = sum(omegas), sum(w * w for w in omegas)
        assert_close(figures[f"rollout_corr/{size}"], float(total**2 / (len(omegas) * squares)), size)
        assert_close(figures[f"rollout_corr/{chi2}"], float(min(squares / len(omegas) - 1, LARGEST)), chi2, tol=1e-9)
        share = figures[f"rollout_corr/rollout_is_max_share{size.removeprefix('rollout_is_eff_sample_size')}"]
        assert_close(share, float(max(omegas) / total), size)


@pytest.mark.parametrize("spread", [0.05, 3.0])
def test_the_sample_size_of_long_sequences(spread: float) -> None:
    """8192 tokens each: clamped sums would all be equal, and the share 100 %."""
    count, tokens = 64, 8192
    sums = [30.0 + spread * math.cos(7.0 * place) for place in range(count)]
    old = torch.tensor(sums, dtype=torch.float64)[:, None].expand(count, tokens) / tokens - 1.0
    figures = mismatch_diagnostics(old, torch.full_like(old, -1.0), torch.ones(count, tokens))
    weights = [math.exp(value - 30.0) for value in sums]
    share = figures["rollout_corr/rollout_is_eff_sample_size_seq"]
    assert share == pytest.approx(reference.effective_sample_size(weights), rel=1e-6)
    assert (share < 0.5) == (spread > 1)


def test_one_sequence_that_carries_everything_is_said() -> None:
    old = torch.zeros(10, 1, dtype=torch.float64)
    old[3] = 800.0
    figures = mismatch_diagnostics(old, torch.zeros_like(old), torch.ones(10, 1))
    assert figures["rollout_corr/rollout_is_max_share_seq"] == 1.0
    assert figures["rollout_corr/rollout_is_eff_sample_size_seq"] == pytest.approx(0.1)
    assert all(math.isfinite(value) for value in figures.values())


def test_kl_of_extremes_is_not_clamped() -> None:
    """The clamp belongs to the weights: a clamped KL hides exactly the tokens that it is there to show."""
    rollout, mask = double([[-1.0, -1.0], [-101.0, -1.0]]), torch.ones(2, 2)
    low = mismatch_diagnostics(double([[-101.0, -1.0], [-101.0, -1.0]]), rollout, mask)
    assert low["rollout_corr/kl"] == pytest.approx(100.0 / 4, rel=1e-10)
    assert low["rollout_corr/k3_kl"] == pytest.approx(99.0 / 4, rel=1e-10)
    high = mismatch_diagnostics(double([[-1.0, -1.0], [-1.0, -1.0]]), rollout, mask)
    assert high["rollout_corr/kl"] == pytest.approx(-100.0 / 4, rel=1e-10)


def test_sample_size_does_not_see_the_truncation() -> None:
    """One token of ratio 100 among ten: the truncated weights would look healthy."""
    rollout = torch.full((1, 10), -5.0, dtype=torch.float64)
    old = rollout.clone()
    old[0, 0] += math.log(100.0)
    mask = torch.ones(1, 10)
    figure = mismatch_diagnostics(old, rollout, mask)["rollout_corr/rollout_is_eff_sample_size"]
    assert figure == pytest.approx(109.0**2 / (10 * 10009.0), rel=1e-10)
    weights, _, _ = rollout_correction(old, rollout, mask, kind="truncate", level="token", upper=2.0)
    truncated = (weights.sum() ** 2 / (10 * (weights**2).sum())).item()
    assert truncated > 0.9 > 3 * figure


def test_identical_policies() -> None:
    """No mismatch: every divergence exactly 0, every sample size exactly 1."""
    log_probs = double([[-0.3, -1.0, -2.2], [-0.7, -0.1, math.nan]])
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    figures = mismatch_diagnostics(log_probs, log_probs, mask)
    for name in ("kl", "k3_kl", "chi2_token", "chi2_seq", "log_ppl_diff", "log_ppl_abs_diff"):
        assert figures[f"rollout_corr/{name}"] == pytest.approx(0.0, abs=1e-15), name
    for name in ("rollout_is_eff_sample_size", "rollout_is_eff_sample_size_seq"):
        assert figures[f"rollout_corr/{name}"] == pytest.approx(1.0, abs=1e-12), name
    assert figures["rollout_corr/training_ppl"] == figures["rollout_corr/rollout_ppl"]


@PROPERTY
@given(case=cases(some_valid=True))
def test_ratio_figures(case: Case) -> None:
    """Clamped or clipped input, sequence means in place of sums, mislabelled quantiles, padding that counts."""
    d = differences(case)
    figures = ratio_diagnostics(double(d), case.mask_tensor())
    expected = reference.ratio_diagnostics(d, case.mask)
    renamed = ratio_diagnostics(double(d), case.mask_tensor(), prefix="rollout_corr")
    assert renamed == {f"rollout_corr{key.removeprefix('ratio')}": value for key, value in figures.items()}
    for name, value in expected.items():
        assert type(figures[name]) is float, name
        assert_close(figures[name], value, name, tol=1e-9)
    tokens = [d[b][t] for b, row in enumerate(case.mask) for t in reference.valid_positions(row)]
    if len(tokens) > 1:
        either = (statistics.pstdev(tokens), statistics.stdev(tokens))
        actual = figures["ratio/token/log_std"]
        assert any(math.isclose(actual, s, rel_tol=1e-9, abs_tol=1e-9) for s in either), (actual, either)
    assert all(math.isfinite(figures[f"ratio/{name}/log_std"]) for name in ("token", "sequence"))


def test_quantiles_of_a_known_sample() -> None:
    """Quantiles computed of the ratio instead of its logarithm, or in reversed order."""
    d = torch.linspace(-10.0, 10.0, 2001, dtype=torch.float64).flip(0)[None]
    figures = ratio_diagnostics(d, torch.ones(1, 2001))
    for key, q in reference.QUANTILES.items():
        assert figures[f"ratio/token/log_{key}"] == pytest.approx(-10.0 + 20.0 * q, abs=1e-9), key
        assert figures[f"ratio/sequence/log_{key}"] == pytest.approx(0.0, abs=1e-9), key


def test_quantiles_of_a_large_batch() -> None:
    """`torch.quantile` refuses more than 2^24 elements, which a batch of long responses exceeds."""
    count = 2**24 + 1000
    d = torch.linspace(0.0, 1.0, count).view(8, -1)
    figures = ratio_diagnostics(d, torch.ones(8, count // 8, dtype=torch.bool))
    assert figures["ratio/token/log_q25"] == pytest.approx(0.25, abs=1e-4)
    assert figures["ratio/token/log_q999"] == pytest.approx(0.999, abs=1e-4)


@PROPERTY
@given(case=cases(spread="close", some_valid=True), data=st.data())
def test_order_of_sequences_is_immaterial(case: Case, data: st.DataObject) -> None:
    """A figure that depends on the order of the rows."""
    turned = case.rows(data.draw(orders(case)))
    assert mismatch_diagnostics(*turned.tensors()) == pytest.approx(
        mismatch_diagnostics(*case.tensors()), rel=1e-10, abs=1e-12
    )
    a, b = (ratio_diagnostics(double(differences(c)), c.mask_tensor()) for c in (case, turned))
    assert b == pytest.approx(a, rel=1e-10, abs=1e-12)


def test_nothing_valid_does_not_raise() -> None:
    """A mean over nothing in the logging path would end a run whose batch was rejected."""
    junk, mask = torch.full((2, 3), math.nan, dtype=torch.float64), torch.zeros(2, 3)
    for figures in (mismatch_diagnostics(junk, junk, mask), ratio_diagnostics(junk, mask)):
        assert all(type(value) is float for value in figures.values())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("old_log_probs", torch.zeros(3)),
        ("old_log_probs", torch.zeros(2, 3, dtype=torch.long)),
        ("rollout_log_probs", torch.zeros(2, 4)),
        ("rollout_log_probs", torch.zeros(2, 3, dtype=torch.long)),
        ("rollout_log_probs", torch.tensor([[0.0, math.nan, 0.0], [0.0, 0.0, 0.0]])),
        ("mask", torch.ones(2)),
    ],
)
def test_bad_tensors_are_refused(name: str, value: Tensor) -> None:
    """Broadcasting, casting or carrying on with NaN instead of naming the argument."""
    good = {"old_log_probs": torch.zeros(2, 3), "rollout_log_probs": torch.zeros(2, 3), "mask": torch.ones(2, 3)}
    with pytest.raises(ValueError, match=name):
        mismatch_diagnostics(*(good | {name: value}).values())
