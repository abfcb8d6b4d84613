"""Reference of the method in plain Python floats: one loop per formula, no tensor library.

Written from the method specification alone (sections 1, 3, 4 and 6). Matrices are lists of rows, masks lists of rows of
bools. Nothing here reads a value at a masked position. Every function that compares a ratio with a bound also returns
the smallest distance, in log space, to such a bound (`margin`), so that a test can leave out ties that rounding
decides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

Row = list[float]
Matrix = list[list[float]]
Mask = list[list[bool]]

CLAMP = 20.0
LEVELS = ("token", "sequence", "sequence_geometric", "prefix", "turn", "turn_geometric")
CORRECTION_LEVELS = ("token", "sequence", "sequence_geometric")
KINDS = ("none", "truncate", "mask", "mask_keep_denominator")
AGGREGATIONS = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum")
ESTIMATORS = ("k1", "k2", "k3")
QUANTILES = {
    "q001": 0.001, "q01": 0.01, "q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95,
    "q99": 0.99, "q999": 0.999,
}  # fmt: skip


def clamp(value: float) -> float:
    """Clamps a log-ratio to [-20, 20]."""
    return min(CLAMP, max(-CLAMP, value))


def valid_positions(row: list[bool]) -> list[int]:
    """Indices that count."""
    return [t for t, keep in enumerate(row) if keep]


@dataclass
class LogRatio:
    """Log-ratios, their slope in the numerator's log-prob of the same token (1 or 0), and the distance to the clamp."""

    values: Matrix
    slopes: Matrix
    margin: float = math.inf


def log_ratio(
    numerator: Matrix, denominator: Matrix, mask: Mask, level: str, turn_ids: list[list[int]] | None = None
) -> LogRatio:
    """Section 1: the six levels. The gradient reaches log p_t only, with slope 1 inside the clamp and 0 outside."""
    values: Matrix = []
    slopes: Matrix = []
    margin = math.inf
    for b, keep in enumerate(mask):
        valid = valid_positions(keep)
        d = {t: numerator[b][t] - denominator[b][t] for t in valid}
        row_values, row_slopes = [0.0] * len(keep), [0.0] * len(keep)
        for t in valid:
            if level == "token":
                raw = d[t]
            elif level == "sequence":
                raw = math.fsum(d.values())
            elif level == "sequence_geometric":
                raw = math.fsum(d.values()) / len(valid)
            elif level == "prefix":
                raw = math.fsum(d[u] for u in valid if u <= t)
            elif level == "turn":
                assert turn_ids is not None
                end = max(u for u in valid if turn_ids[b][u] == turn_ids[b][t])
                raw = math.fsum(d[u] for u in valid if u <= end)
            elif level == "turn_geometric":
                assert turn_ids is not None
                turn = [u for u in valid if turn_ids[b][u] == turn_ids[b][t]]
                raw = math.fsum(d[u] for u in turn) / len(turn)
            else:
                raise AssertionError(level)
            row_values[t] = clamp(raw)
            row_slopes[t] = 1.0 if -CLAMP <= raw <= CLAMP else 0.0
            margin = min(margin, abs(abs(raw) - CLAMP))
        values.append(row_values)
        slopes.append(row_slopes)
    return LogRatio(values, slopes, margin)


@dataclass
class Correction:
    """Weights (meaningful where `mask` is true), the mask after correction, metrics, distance to the nearest bound."""

    weights: Matrix
    mask: Mask
    metrics: dict[str, float]
    margin: float = math.inf


def rollout_correction(
    old: Matrix,
    rollout: Matrix,
    mask: Mask,
    kind: str,
    level: str,
    upper: float | None = None,
    lower: float | None = None,
    veto: float | None = None,
) -> Correction:
    """Section 4: weights and mask of the two-ratio baselines."""
    low = 0.0 if lower is None else lower
    high = math.inf if upper is None else upper
    margin = math.inf
    weights: Matrix = []
    kept: Mask = []
    for b, keep in enumerate(mask):
        valid = valid_positions(keep)
        rho = {t: old[b][t] - rollout[b][t] for t in valid}
        row_weights, row_kept = [0.0] * len(keep), [False] * len(keep)
        vetoed = False
        if veto is not None:
            vetoed = any(math.exp(clamp(rho[t])) < veto for t in valid)
            margin = min([margin] + [abs(clamp(rho[t]) - math.log(veto)) for t in valid if veto > 0])
        for t in valid:
            if level == "token":
                log_omega = clamp(rho[t])
            elif level == "sequence":
                log_omega = clamp(math.fsum(rho.values()))
            elif level == "sequence_geometric":
                log_omega = clamp(math.fsum(rho.values()) / len(valid))
            else:
                raise AssertionError(level)
            omega = math.exp(log_omega)
            inside = low <= omega <= high
            if kind in ("mask", "mask_keep_denominator"):
                for bound in (low, high):
                    if 0.0 < bound < math.inf:
                        margin = min(margin, abs(log_omega - math.log(bound)))
            if kind == "none":
                row_weights[t], row_kept[t] = 1.0, True
            elif kind == "truncate":
                row_weights[t], row_kept[t] = min(omega, high), True
            elif kind == "mask":
                row_weights[t], row_kept[t] = omega, inside
            elif kind == "mask_keep_denominator":
                row_weights[t], row_kept[t] = omega if inside else 0.0, True
            else:
                raise AssertionError(kind)
            row_kept[t] = row_kept[t] and not vetoed
        weights.append(row_weights)
        kept.append(row_kept)
    tokens = sum(sum(row) for row in mask)
    rows = [b for b, row in enumerate(mask) if any(row)]
    # A token that stays in the denominator with weight 0 has left the loss all the same.
    counted = [[k and w > 0 for k, w in zip(kept[b], weights[b], strict=True)] for b in range(len(mask))]
    metrics = {
        "correction/masked_tokens": 1.0 - sum(map(sum, counted)) / tokens if tokens else 0.0,
        "correction/masked_sequences": sum(not any(counted[b]) for b in rows) / len(rows) if rows else 0.0,
    }
    return Correction(weights, kept, metrics, margin)


def group_advantages(rewards: Row, group_ids: list[int]) -> Row:
    """Section 3: (R - mean) / (unbiased std + 1e-6) within the group; exactly 0 where all rewards of it are equal."""
    advantages = []
    for reward, group in zip(rewards, group_ids, strict=True):
        members = [r for r, g in zip(rewards, group_ids, strict=True) if g == group]
        mean = math.fsum(members) / len(members)
        std = math.sqrt(math.fsum((r - mean) ** 2 for r in members) / (len(members) - 1))
        advantages.append(0.0 if max(members) == min(members) else (reward - mean) / (std + 1e-6))
    return advantages


@dataclass
class Loss:
    """The loss, its gradient in the log-ratios, the sum of the terms' magnitudes, metrics, distance to a clip edge."""

    value: float
    gradient: Matrix
    scale: float
    metrics: dict[str, float]
    margin: float = math.inf
    token_losses: Matrix = field(default_factory=list)


def policy_loss(
    log_r: Matrix,
    advantages: Row | Matrix,
    mask: Mask,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
    weights: Matrix | None = None,
    normaliser: float | None = None,
    aggregation: str = "token-mean",
) -> Loss:
    """Section 3: clipped, dual-clipped and weighted loss with its analytic gradient in log r."""
    tokens = sum(sum(row) for row in mask)
    sequences = sum(any(row) for row in mask)
    count = normaliser if normaliser is not None else (tokens if aggregation == "token-mean" else sequences)
    terms: list[float] = []
    gradient = [[0.0] * len(row) for row in mask]
    losses = [[0.0] * len(row) for row in mask]
    edges = [math.log1p(clip_high)] + ([math.log1p(-clip_low)] if clip_low < 1 else [])
    edges += [math.log(dual_clip)] if dual_clip is not None else []
    margin = math.inf
    low_count = high_count = dual_count = 0
    for b, keep in enumerate(mask):
        for t in valid_positions(keep):
            per_sequence = advantages[b]
            a = per_sequence[t] if isinstance(per_sequence, list) else per_sequence
            r = math.exp(log_r[b][t])
            clipped = min(max(r, 1.0 - clip_low), 1.0 + clip_high)
            margin = min([margin] + [abs(log_r[b][t] - edge) for edge in edges])
            if a >= 0:
                loss = -min(r * a, clipped * a)
                flows = r <= 1.0 + clip_high
                high_count += a > 0 and not flows
            else:
                loss = max(-r * a, -clipped * a)
                flows = r >= 1.0 - clip_low
                low_count += not flows
                if dual_clip is not None and loss > -dual_clip * a:
                    loss, flows = -dual_clip * a, False
                    dual_count += 1
            factor = 1.0 if weights is None else weights[b][t]
            if aggregation == "seq-mean-token-mean":
                factor /= sum(keep)
            losses[b][t] = loss
            terms.append(factor * loss / count)
            gradient[b][t] = factor * (-a * r) / count if flows else 0.0
    metrics = {
        "ratio/clipped_low": low_count / tokens if tokens else 0.0,
        "ratio/clipped_high": high_count / tokens if tokens else 0.0,
        "ratio/dual_clipped": dual_count / tokens if tokens else 0.0,
    }
    return Loss(math.fsum(terms), gradient, math.fsum(map(abs, terms)), metrics, margin, losses)


def kl_penalty(log_probs: Matrix, reference: Matrix, mask: Mask, estimator: str) -> tuple[Matrix, Matrix]:
    """Section 3: k1, k2 and k3 with x = log pi - log pi_ref, and their slopes in log pi; 0 at masked positions."""
    values = [[0.0] * len(row) for row in mask]
    slopes = [[0.0] * len(row) for row in mask]
    for b, keep in enumerate(mask):
        for t in valid_positions(keep):
            x = log_probs[b][t] - reference[b][t]
            if estimator == "k1":
                values[b][t], slopes[b][t] = x, 1.0
            elif estimator == "k2":
                values[b][t], slopes[b][t] = 0.5 * x * x, x
            else:
                values[b][t], slopes[b][t] = k3(-x), -math.expm1(min(-x, 20.0))
    return values, slopes


def mean(values: Row) -> float:
    """Arithmetic mean."""
    return math.fsum(values) / len(values)


def effective_sample_size(omegas: Row) -> float:
    """(sum w)^2 / (N sum w^2)."""
    return math.fsum(omegas) ** 2 / (len(omegas) * math.fsum(w * w for w in omegas))


def k3(x: float) -> float:
    """e^x - x - 1, beyond 20 the tangent at 20."""
    return math.expm1(min(x, 20.0)) - min(x, 20.0) + (math.expm1(20.0) * (x - 20.0) if x > 20.0 else 0.0)


def mismatch_diagnostics(old: Matrix, rollout: Matrix, mask: Mask) -> dict[str, float]:
    """Section 6, for at least one valid token."""
    rows = [b for b, row in enumerate(mask) if any(row)]
    valid = {b: valid_positions(mask[b]) for b in rows}
    rho = {b: [old[b][t] - rollout[b][t] for t in valid[b]] for b in rows}
    tokens = [x for b in rows for x in rho[b]]
    sums = [math.fsum(rho[b]) for b in rows]
    old_means = [mean([old[b][t] for t in valid[b]]) for b in rows]
    rollout_means = [mean([rollout[b][t] for t in valid[b]]) for b in rows]
    gaps = [a - b for a, b in zip(old_means, rollout_means, strict=True)]
    figures = {
        "kl": mean([-x for x in tokens]),
        "k3_kl": mean([k3(x) for x in tokens]),
        "chi2_token": mean([math.expm1(2 * x) for x in tokens]),
        "chi2_seq": mean([math.expm1(2 * x) for x in sums]),
        "training_ppl": math.exp(mean([-x for x in old_means])),
        "rollout_ppl": math.exp(mean([-x for x in rollout_means])),
        "log_ppl_diff": mean(gaps),
        "log_ppl_abs_diff": mean([abs(x) for x in gaps]),
        "rollout_is_eff_sample_size": effective_sample_size([math.exp(x) for x in tokens]),
        "rollout_is_eff_sample_size_seq": effective_sample_size([math.exp(x) for x in sums]),
        "rollout_is_max_share": max(math.exp(x) for x in tokens) / math.fsum(math.exp(x) for x in tokens),
        "rollout_is_max_share_seq": max(math.exp(x) for x in sums) / math.fsum(math.exp(x) for x in sums),
    }
    return {f"rollout_corr/{name}": value for name, value in figures.items()}


def quantile(values: Row, q: float) -> float:
    """Quantile by linear interpolation between order statistics."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def ratio_diagnostics(d: Matrix, mask: Mask) -> dict[str, float]:
    """Section 6: quantiles, mean, minimum and maximum of the log-ratio (the std is left to the test)."""
    tokens = [d[b][t] for b, row in enumerate(mask) for t in valid_positions(row)]
    sums = [math.fsum(d[b][t] for t in valid_positions(row)) for b, row in enumerate(mask) if any(row)]
    figures: dict[str, float] = {}
    for name, values in (("token", tokens), ("sequence", sums)):
        prefix = f"ratio/{name}/log_"
        figures |= {f"{prefix}mean": mean(values), f"{prefix}min": min(values), f"{prefix}max": max(values)}
        figures |= {f"{prefix}{key}": quantile(values, q) for key, q in QUANTILES.items()}
    return figures
