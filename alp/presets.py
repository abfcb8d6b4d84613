"""Methods in words: to which group each belongs, its formula, its corrections. For people; nothing reads it back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

from alp.foreign import read_yaml
from alp.policy.method import Correction, Method, Perturbation
from alp.policy.settings import type_hints

GROUPS = (
    "One ratio, clipped",
    "Corrections of a clipped ratio",
    "Other forms of the loss",
    "Layerwise perturbation",
)
FORMULAS = "Losses of a token"
_NUMERATORS = {"current": "π_θ", "perturbed": "π_θ,δ"}
_DENOMINATORS = {"old": "π_old", "rollout": "μ"}
_POLICIES = {"current": "π_θ", "old": "π_old", "rollout": "μ"}
_STATISTICS = {
    "k1": "−log ω",
    "k2": "½ log² ω",
    "k3": "ω − 1 − log ω",
    "log_square": "log² ω",
    "prob_gap": "abs(p − q)",
    "binary_kl": "KL(q, p) of the token or any other",
    "binary_kl_max": "KL(q, p) and KL(p, q) of the token or any other",
}
_REDUCED = {"token": "", "sum": "sum of ", "mean": "mean of ", "max": "largest ", "batch": "mini-batch mean of "}
_LEVELS = {"token": "", "sequence": "Π ", "sequence_geometric": "geometric mean "}
_WHEN = {"always": "", "negative": "A < 0: ", "outward": "moving outward: "}


PACKED = Path(__file__).parent / "methods"  # where the small distribution has those files


def known() -> tuple[Method, ...]:
    """Every file of ``configs/method``, in alphabetical order."""
    if PACKED.is_dir():
        return read(PACKED)
    from alp.configuration import compose

    with suppress(AttributeError, LookupError, TypeError, ValueError):
        made = read(compose.CONFIGS / "method")
        if [method.name for method in made] == compose.choices("method"):
            return made
    return _composed(compose.CONFIGS)


@cache
def _composed(_: Path) -> tuple[Method, ...]:
    """The same out of whole configurations, which takes seconds and says what is wrong with a file."""
    from alp.configuration import compose

    return tuple(compose.load("train", [f"method={name}"]).method for name in compose.choices("method"))


@cache
def read(folder: Path) -> tuple[Method, ...]:
    """Presets as their files say, without Hydra and pydantic. Raises UserError, ValueError."""
    return tuple(_made(Method, read_yaml("method", path)) for path in sorted(folder.glob("*.yaml")))


def _made(kind: type[Any], plain: dict[str, Any]) -> Any:
    """A dataclass of settings, and those inside of it."""
    hints = type_hints(kind)
    return kind(**{name: _value(hints[name], value) for name, value in plain.items()})


def _value(hint: Any, value: Any) -> Any:
    kinds = (hint, *get_args(hint))
    if isinstance(value, str) and float in kinds:
        return float(value)  # YAML takes 1e-4 for a text, Hydra does not
    inner: Any = next((kind for kind in kinds if is_dataclass(kind)), None)
    if inner is None or value is None:
        return value
    return [_made(inner, entry) for entry in value] if isinstance(value, list) else _made(inner, value)


def group(method: Method) -> str:
    """One of ``GROUPS``."""
    if method.perturbation is not None:
        return GROUPS[3]
    if method.loss_form != "clip":
        return GROUPS[2]
    return GROUPS[1] if method.correction_acts else GROUPS[0]


def lines(methods: Iterable[Method]) -> Iterator[str]:
    """A table with a heading for each group, one method a line, then the formula of each loss among them."""
    known = [*methods]
    rows = [(group(method), row(method)) for method in known]
    for heading in GROUPS:
        yield heading
        table = [["method", "ratio r", "loss", "beside it"], *(cells for name, cells in rows if name == heading)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for cells in table:
            yield "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        yield ""
    yield FORMULAS
    forms = {method.loss_form: method.form.formula for method in known}
    widest = max(map(len, forms))
    yield from (f"{name.ljust(widest)}  {formula}" for name, formula in sorted(forms.items()))


def row(method: Method) -> list[str]:
    """Name, ratio, loss with its settings, and what acts beside them."""
    noise = method.perturbation
    beside = [*map(correction, method.corrections), *([] if noise is None else [perturbation(noise)])]
    return [method.name, _ratio(method), _loss(method), "; ".join(beside) or "–"]


def _ratio(method: Method) -> str:
    if not method.reads_ratio:
        return "–"
    return f"{_NUMERATORS[method.numerator]} / {_DENOMINATORS[method.denominator]}, {method.level}"


def _loss(method: Method) -> str:
    parts = [] if method.clip_low is None else [f"{method.clip_low:g} / {method.clip_high:g}"]
    parts += [] if method.dual_clip is None else [f"c {method.dual_clip:g}"]
    parts += [f"{name} {value:g}" for name, value in (method.form.options | method.loss_options).items()]
    parts += [f"+ {method.log_square:g} log² r"] if method.log_square else []
    parts += [] if method.aggregation == "token-mean" else [method.aggregation]
    return f"{method.loss_form}: {', '.join(parts)}" if parts else method.loss_form


def correction(rule: Correction) -> str:
    """A correction in words; ω is π_old / μ where they do not say what else."""
    parts = [] if rule.kind == "none" else [_rule(rule)]
    return " and ".join([*parts, *([] if rule.veto is None else [f"veto below {rule.veto:g}"])])


def _rule(rule: Correction) -> str:
    names = [_POLICIES[part] for part in rule.between.split("_")]
    weight = f"{_LEVELS[rule.level]}ω"
    ratio = "" if rule.between == "old_rollout" else f" (ω = {' / '.join(names)})"
    if rule.kind == "truncate":
        bounds = f"≤ {rule.upper:g}" if rule.lower is None else f"in [{rule.lower:g}, {rule.upper:g}]"
        text = f"{_WHEN[rule.when]}weight {weight} {bounds}"
        text += " over its mean" if rule.batch_normalise else ""
    else:
        bounded = weight if rule.statistic == "ratio" else f"{_REDUCED[rule.reduce]}{_STATISTICS[rule.statistic]}"
        bounds = f"≤ {rule.upper:g}" if rule.lower is None else f"in [{rule.lower:g}, {rule.upper:g}]"
        inside = "" if rule.weight == "one" else f", weight {weight}"
        outside = "else out of the normaliser" if rule.kind == "mask" else "else 0"
        text = f"{_WHEN[rule.when]}{bounded} {bounds}{inside}, {outside}"
    return text + ratio


def perturbation(noise: Perturbation) -> str:
    """Noise in words."""
    size = f"c_0 = {noise.std:g} · RMS" if noise.scale == "relative" else f"σ_0 = {noise.std:g}"
    return f"noise in layers {noise.layers}, {size}, lr {noise.lr:g}"
