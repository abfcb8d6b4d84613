"""References of the published corrections in plain Python floats: value and gradient of each preset's loss.

Written from the formulas of the literature (docs/method.md), one function a preset, with its authors' numbers in it: no
tensor, no setting of ours. The gradient is by the derivative that stands in the comment or follows from the formula by
hand. Nothing reads a masked position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Row = list[float]
Matrix = list[list[float]]


@dataclass(frozen=True)
class Sample:
    """A mini-batch: log π_θ, log π_old, log μ (rows, tokens), the response mask, one advantage and reward a row, the
    turn of each token."""

    current: Matrix
    old: Matrix
    rollout: Matrix
    mask: list[list[bool]]
    advantages: Row
    rewards: Row
    turns: list[list[int]]

    def rows(self) -> Iterator[tuple[int, list[int]]]:
        """Rows with any valid token, and where these stand."""
        for b, keep in enumerate(self.mask):
            if any(keep):
                yield b, [t for t, one in enumerate(keep) if one]

    def stale(self, b: int, t: int) -> float:
        """log π_θ/π_old."""
        return self.current[b][t] - self.old[b][t]

    def gap(self, b: int, t: int) -> float:
        """log π_old/μ."""
        return self.old[b][t] - self.rollout[b][t]

    def off(self, b: int, t: int) -> float:
        """log π_θ/μ."""
        return self.current[b][t] - self.rollout[b][t]


Token = tuple[float, float]  # the loss of a token, and its slope in log π_θ of that token
Result = tuple[float, Matrix]
Losses = dict[tuple[int, int], Token]


def token_mean(sample: Sample, losses: Losses, tokens: int | None = None) -> Result:
    """Over all valid tokens, or a number of them."""
    count = sum(map(sum, sample.mask)) if tokens is None else tokens
    return _total(
        sample, {place: (loss / count, slope / count) for place, (loss, slope) in losses.items()} if count else {}
    )


def sequence_mean(sample: Sample, losses: Losses, *, of: str) -> Result:
    """Mean over the sequences of the ``mean`` or the ``sum`` of their tokens."""
    rows = dict(sample.rows())
    shares = {b: 1 / len(rows) / (len(positions) if of == "mean" else 1) for b, positions in rows.items()}
    return _total(sample, {(b, t): (v * shares[b], s * shares[b]) for (b, t), (v, s) in losses.items()})


def _total(sample: Sample, losses: Losses) -> Result:
    gradient = [[0.0] * len(row) for row in sample.mask]
    for (b, t), (_, slope) in losses.items():
        gradient[b][t] = slope
    return math.fsum(loss for loss, _ in losses.values()), gradient


def per_token(sample: Sample, one: Callable[[int, int, float], Token]) -> Losses:
    """``one(row, token, advantage)`` of every valid token."""
    return {(b, t): one(b, t, sample.advantages[b]) for b, positions in sample.rows() for t in positions}


def ppo(r: float, a: float, low: float, high: float, c: float = math.inf) -> Token:
    """The clipped loss between ratio bounds: −r A, flat outside on the side that A pushes to, and beyond c."""
    if a >= 0:
        return (-r * a, -r * a) if r <= high else (-high * a, 0.0)
    if r < low:
        return -low * a, 0.0
    return (-r * a, -r * a) if r <= c else (-c * a, 0.0)


def times(token: Token, weight: float) -> Token:
    """A detached weight."""
    return token[0] * weight, token[1] * weight


def grpo_token(sample: Sample, b: int, t: int, a: float) -> Token:
    """The project's common clip range and dual clip."""
    return ppo(math.exp(sample.stale(b, t)), a, 0.8, 1.28, 10.0)


# Ratio and clip


def dapo(sample: Sample) -> Result:
    return token_mean(sample, per_token(sample, lambda b, t, a: ppo(math.exp(sample.stale(b, t)), a, 0.8, 1.28)))


def luspo(sample: Sample) -> Result:
    means = {b: math.fsum(sample.stale(b, t) for t in positions) / len(positions) for b, positions in sample.rows()}
    losses = per_token(sample, lambda b, t, a: ppo(math.exp(means[b]), a, 1 - 2e-3, 1 + 2.5e-3))
    return sequence_mean(sample, losses, of="sum")


def so_grpo_ratio(sample: Sample) -> Result:
    def ratio(b: int, t: int) -> float:
        turn = [u for u in dict(sample.rows())[b] if sample.turns[b][u] == sample.turns[b][t]]
        return math.prod(math.exp(sample.stale(b, u)) for u in turn) ** (1 / len(turn))

    return token_mean(sample, per_token(sample, lambda b, t, a: ppo(ratio(b, t), a, 0.8, 1.2)))


# Masks and weights on the mismatch


def icepop(sample: Sample) -> Result:
    def one(b: int, t: int, a: float) -> Token:
        w = math.exp(sample.gap(b, t))
        return times(grpo_token(sample, b, t, a), w if 0.5 <= w <= 5.0 else 0.0)

    return token_mean(sample, per_token(sample, one))


def bernoulli(p: float, q: float) -> float:
    """KL of two coins."""
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def prime(sample: Sample, keep: Callable[[float, float], bool]) -> Result:
    """prime-rl: −r A where kept, and 1e-3 log² r on every token, r = π_θ/μ; slope −r A + 2e-3 log r."""

    def one(b: int, t: int, a: float) -> Token:
        d = sample.off(b, t)
        p, q = math.exp(sample.current[b][t]), math.exp(sample.rollout[b][t])
        policy = -math.exp(d) * a if keep(p, q) else 0.0
        return policy + 1e-3 * d * d, policy + 2e-3 * d

    return token_mean(sample, per_token(sample, one))


def kpop(sample: Sample) -> Result:
    def keep(p: float, q: float) -> bool:
        p, q = (min(max(x, 1e-6), 1 - 1e-6) for x in (p, q))
        return bernoulli(p, q) <= 0.1 and bernoulli(q, p) <= 0.1

    return prime(sample, keep)


def ipo(sample: Sample) -> Result:
    return prime(sample, lambda p, q: abs(p - q) <= 0.1)


def rejected(sample: Sample, keep: Callable[[int, list[int]], bool], *, leave: bool, weight: str = "one") -> Result:
    """GRPO on the sequences that ``keep`` keeps; the others leave the normaliser, or stay in it. ``weight``: one, the
    token's ω, or the sequence's."""
    losses: Losses = {}
    for b, positions in sample.rows():
        if keep(b, positions):
            product = math.exp(math.fsum(sample.gap(b, t) for t in positions))
            for t in positions:
                w = {"one": 1.0, "token": math.exp(sample.gap(b, t)), "sequence": product}[weight]
                losses[b, t] = times(grpo_token(sample, b, t, sample.advantages[b]), w)
    return token_mean(sample, losses, len(losses) if leave else None)


def geometric_mean(sample: Sample, b: int, positions: list[int]) -> float:
    return math.prod(math.exp(sample.gap(b, t)) for t in positions) ** (1 / len(positions))


def geo_rs(sample: Sample) -> Result:
    return rejected(sample, lambda b, ts: 0.999 <= geometric_mean(sample, b, ts) <= 1.001, leave=True)


def seq_mask_tis(sample: Sample) -> Result:
    return rejected(sample, lambda b, ts: 0.999 <= geometric_mean(sample, b, ts) <= 1.002, leave=False, weight="token")


def seq_mask_trl(sample: Sample) -> Result:
    def keep(b: int, positions: list[int]) -> bool:
        return math.prod(math.exp(sample.gap(b, t)) for t in positions) <= 3.0

    return rejected(sample, keep, leave=False, weight="sequence")


def opsm(sample: Sample) -> Result:
    def keep(b: int, positions: list[int]) -> bool:
        drift = math.fsum(sample.rollout[b][t] - sample.current[b][t] for t in positions) / len(positions)
        return not (sample.advantages[b] < 0 and drift > 0.5)

    return rejected(sample, keep, leave=False)


def trm_max_k2(sample: Sample) -> Result:
    return rejected(sample, lambda b, ts: max(sample.gap(b, t) ** 2 / 2 for t in ts) <= 0.02, leave=True)


def trm_mean_k3(sample: Sample) -> Result:
    def k3(d: float) -> float:
        return math.exp(d) - 1 - d

    return rejected(sample, lambda b, ts: sum(k3(sample.gap(b, t)) for t in ts) / len(ts) <= 0.01, leave=True)


def veto(sample: Sample) -> Result:
    return rejected(sample, lambda b, ts: min(math.exp(sample.gap(b, t)) for t in ts) >= 1e-4, leave=True)


def dppo(sample: Sample, far: Callable[[float, float], bool]) -> Result:
    """−sg(min(r, 10)) A log π, 0 where the token moves outward and too far; r = π_θ/μ."""

    def one(b: int, t: int, a: float) -> Token:
        p, q = math.exp(sample.current[b][t]), math.exp(sample.rollout[b][t])
        if far(p, q) and ((a > 0 and p > q) or (a <= 0 and p < q)):
            return 0.0, 0.0
        weight = min(p / q, 10.0)
        return -weight * a * sample.current[b][t], -weight * a

    return token_mean(sample, per_token(sample, one))


def dppo_tv(sample: Sample) -> Result:
    return dppo(sample, lambda p, q: abs(p - q) > 0.15)


def dppo_kl(sample: Sample) -> Result:
    def far(p: float, q: float) -> bool:
        return q * math.log(q / p) + (1 - q) * math.log((1 - q + 1e-8) / (1 - p + 1e-8)) > 0.05

    return dppo(sample, far)


def m2po(sample: Sample) -> Result:
    outward = [
        (b, t) for b, positions in sample.rows() for t in positions if sample.advantages[b] * sample.stale(b, t) > 0
    ]
    outward.sort(key=lambda place: abs(sample.stale(*place)))
    while outward and math.fsum(sample.stale(*place) ** 2 for place in outward) / len(outward) > 0.04:
        outward.pop()
    kept = set(outward)

    def one(b: int, t: int, a: float) -> Token:
        d = sample.stale(b, t)
        loss = -math.exp(d) * a if a * d <= 0 or (b, t) in kept else 0.0
        return loss, loss

    return token_mean(sample, per_token(sample, one))


# Other forms of the loss


def grpo_unclipped(sample: Sample) -> Result:
    def one(b: int, t: int, a: float) -> Token:
        return -math.exp(sample.stale(b, t)) * a, -math.exp(sample.stale(b, t)) * a

    return token_mean(sample, per_token(sample, one))


def pspo(sample: Sample) -> Result:
    def one(b: int, t: int, a: float) -> Token:
        p, o = math.exp(sample.current[b][t]), math.exp(sample.old[b][t])
        return -(0.9 * p + 0.1 * o) / o * a, -0.9 * p / o * a

    return token_mean(sample, per_token(sample, one))


def score(sample: Sample, weight: Callable[[int, int, float], float]) -> Losses:
    """−sg(w) A log π."""

    def one(b: int, t: int, a: float) -> Token:
        w = weight(b, t, a)
        return -w * a * sample.current[b][t], -w * a

    return per_token(sample, one)


def cispo(sample: Sample) -> Result:
    return token_mean(sample, score(sample, lambda b, t, a: min(math.exp(sample.stale(b, t)), 5.0)))


def products(sample: Sample) -> dict[int, float]:
    """Π π_θ/μ by row."""
    return {b: math.prod(math.exp(sample.off(b, t)) for t in positions) for b, positions in sample.rows()}


def bypass_pg_is(sample: Sample) -> Result:
    whole = products(sample)
    return token_mean(sample, score(sample, lambda b, t, a: min(whole[b], 2.0)))


def topr(sample: Sample) -> Result:
    whole = products(sample)
    return sequence_mean(sample, score(sample, lambda b, t, a: 1.0 if a >= 0 else min(whole[b], 1.0)), of="sum")


def sapo(sample: Sample) -> Result:
    def one(b: int, t: int, a: float) -> Token:
        r, tau = math.exp(sample.stale(b, t)), 1.0 if a > 0 else 1.05
        gate = 1 / (1 + math.exp(-tau * (r - 1)))
        return -4 / tau * gate * a, -4 * gate * (1 - gate) * r * a

    return sequence_mean(sample, per_token(sample, one), of="mean")


def ce_gppo(sample: Sample) -> Result:
    """PPO's clip, but outside, on the side that A pushes to, the gradient stays what it is at the bound, times β."""

    def one(b: int, t: int, a: float) -> Token:
        r = math.exp(sample.stale(b, t))
        if a < 0 and r < 0.8:
            return -0.75 * 0.8 * a, -0.75 * 0.8 * a
        if a > 0 and r > 1.28:
            return -1.28 * a, -1.28 * a
        return ppo(r, a, 0.8, 1.28, 3.0)

    return token_mean(sample, per_token(sample, one))


def whole_sequences(sample: Sample, one: Callable[[float, list[float]], tuple[float, list[float]]]) -> Result:
    """Mean over sequences of ``one(A, log π_θ/π_old of its tokens)``: a value, and its slope in each of them."""
    rows = dict(sample.rows())
    gradient, total = [[0.0] * len(row) for row in sample.mask], 0.0
    for b, positions in rows.items():
        value, slopes = one(sample.advantages[b], [sample.stale(b, t) for t in positions])
        total += value / len(rows)
        for t, slope in zip(positions, slopes, strict=True):
            gradient[b][t] = slope / len(rows)
    return total, gradient


def gmpo(sample: Sample) -> Result:
    """−A J, J = exp(mean c); slope −A J / T where c is not clipped."""

    def one(a: float, drift: list[float]) -> tuple[float, list[float]]:
        clipped = [min(d, 0.4) if a > 0 else max(d, -0.4) for d in drift]
        mean = math.exp(sum(clipped) / len(clipped))
        return -a * mean, [-a * mean / len(drift) if c == d else 0.0 for c, d in zip(clipped, drift, strict=True)]

    return whole_sequences(sample, one)


def vespo(sample: Sample) -> Result:
    whole = products(sample)

    def weight(b: int, t: int, a: float) -> float:
        k, rate = (2.0, 3.0) if a >= 0 else (3.0, 2.0)
        w = max(whole[b], 1e-8)
        return math.exp(rate) * w**k * math.exp(-rate * w)

    return token_mean(sample, score(sample, weight))


def dro(sample: Sample) -> Result:
    def one(b: int, t: int, a: float) -> Token:
        d = sample.off(b, t)
        return -(a * sample.current[b][t] - 0.05 / 2 * d * d), -(a - 0.05 * d)

    return token_mean(sample, per_token(sample, one))


def apmpo(sample: Sample) -> Result:
    """sgn(A) M_p(φ), φ = |min(r A, clip(r) A)|; slope of φ_t^p by the chain rule: (φ_t/M)^(p−1) φ_t / T."""
    mean = math.fsum(sample.rewards) / len(sample.rewards)
    spread = math.sqrt(math.fsum((r - mean) ** 2 for r in sample.rewards) / len(sample.rewards))
    p, high = math.exp(-0.8 * mean), 1 + 0.2 + (0.4 - 0.2) * math.tanh(mean / (spread + 1e-6))

    def one(a: float, drift: list[float]) -> tuple[float, list[float]]:
        if a == 0:
            return 0.0, [0.0] * len(drift)
        ratios = [math.exp(d) for d in drift]
        phi = [abs(min(r * a, min(max(r, 0.8), high) * a)) for r in ratios]
        flows = [r <= high if a > 0 else r >= 0.8 for r in ratios]
        whole = (math.fsum(x**p for x in phi) / len(phi)) ** (1 / p)
        sign = math.copysign(1.0, a)
        slopes = [-sign * (x / whole) ** (p - 1) * x / len(phi) if f else 0.0 for x, f in zip(phi, flows, strict=True)]
        return -sign * whole, slopes

    return whole_sequences(sample, one)


def spo(sample: Sample) -> Result:
    def one(b: int, t: int, a: float) -> Token:
        r = math.exp(sample.stale(b, t))
        return -(r * a - abs(a) / 0.4 * (r - 1) ** 2), -(r * a - abs(a) / 0.2 * (r - 1) * r)

    return token_mean(sample, per_token(sample, one))


def bapo(sample: Sample) -> Result:
    low, high = 0.6, 1.2

    def short() -> bool:
        gain = loss = 0.0
        for b, positions in sample.rows():
            for t in positions:
                r, a = math.exp(sample.stale(b, t)), sample.advantages[b]
                gain += min(r, high) * a if a >= 0 else 0.0
                loss += max(r, low) * -a if a < 0 else 0.0
        return gain < 0.5 * (gain + loss)

    while short() and low < 0.9 - 1e-9:
        low = min(low + 0.05, 0.9)
    while short() and high < 3.0 - 1e-9:
        high = min(high + 0.05, 3.0)
    return token_mean(sample, per_token(sample, lambda b, t, a: ppo(math.exp(sample.stale(b, t)), a, low, high, 3.0)))


PUBLISHED: dict[str, Callable[[Sample], Result]] = {
    function.__name__: function
    for function in (
        *(dapo, luspo, so_grpo_ratio),
        *(icepop, kpop, ipo, geo_rs, seq_mask_tis, seq_mask_trl, opsm, trm_max_k2, trm_mean_k3, veto),
        *(dppo_tv, dppo_kl, m2po),
        *(grpo_unclipped, pspo, cispo, bypass_pg_is, topr, sapo, ce_gppo, gmpo, vespo, dro, apmpo, bapo, spo),
    )
}
