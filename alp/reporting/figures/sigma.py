"""What the learned noise became, layer by layer."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from alp.rendering import plots
from alp.reporting.looks import looks
from alp.reporting.records import Floats
from alp.reporting.registry import Declaration
from alp.reporting.runs import ArmRuns, Results

ARTEFACT = Declaration(
    order=120,
    title="Learned noise per layer",
    caption=(
        "Learned noise level of every perturbed layer after each training step, averaged over seeds, for the arms "
        "that learn their noise; of noise relative to the hidden state, the mean absolute level that it makes. All "
        "panels share one logarithmic colour scale."
    ),
    condition="has_learned_noise",
)


def make(loaded: Results) -> Figure:
    """Heat map of σ per layer against step, one panel per arm that learns its noise."""
    arm_looks = looks(loaded)
    arms = [arm for arm in loaded.arms if arm.learns_noise]
    maps = [noise_map(arm) for arm in arms]
    layers = max(len(names) for names, _, _ in maps)
    columns = plots.columns_for(len(arms), plots.beside(2))
    rows = -(-len(arms) // columns)
    figure = plots.canvas(0.6 + rows * (0.75 + min(0.28 * layers, 2.2)))
    known = np.concatenate([values[values > 0] for _, _, values in maps])
    low, high = (known.min(), known.max()) if known.size else (1e-3, 1e-2)
    middle = (low * high) ** 0.5
    low, high = min(low, middle / 1.1), max(high, middle * 1.1)  # a noise that hardly moved shall not look as if it had
    scale = LogNorm(low, high)
    shown = plots.panels(figure, len(arms), columns, share_y=False)
    for axes, arm, (names, steps, values) in zip(shown, arms, maps, strict=True):
        axes.grid(visible=False)
        axes.set_title(arm_looks[arm.name].label)
        if not names:
            plots.empty(axes, "not logged")
            continue
        edges = np.concatenate([[steps[0] - 0.5], (steps[1:] + steps[:-1]) / 2, [steps[-1] + 0.5]])
        mesh = axes.pcolormesh(
            edges, np.arange(len(names) + 1) - 0.5, values, norm=scale, cmap="viridis", rasterized=True
        )
        every = -(-len(names) // 12)
        axes.set_yticks(range(0, len(names), every), names[::every])
        plots.step_ticks(axes)
        axes.set_ylabel("layer")
    figure.supxlabel("step (rollout batch)", fontsize=8.5)
    if known.size:
        aspect = 20 * plots.stacked(rows)  # of one width, however many panels it stands beside
        bar = figure.colorbar(mesh, ax=shown, label="σ, mean over seeds", fraction=0.05, pad=0.02, aspect=aspect)
        _few_ticks(bar.ax, low, high)
    return figure


def noise_map(arm: ArmRuns) -> tuple[list[str], Floats, Floats]:
    """Layer names (layers,) in order of depth, steps (steps,), and σ averaged over seeds (layers, steps)."""
    prefix = "perturbation/std/"
    layers = {
        key.removeprefix(prefix) for run in arm.runs for line in run.metrics for key in line if key.startswith(prefix)
    }
    names = sorted(layers, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))
    curves = [
        dict(zip(steps, values.mean(axis=0), strict=True))
        for steps, values in (arm.series(prefix + name) for name in names)
    ]
    steps = sorted(set().union(*curves)) if curves else []
    table = [[curve.get(step, np.nan) for step in steps] for curve in curves]
    return names, np.array(steps, float), np.array(table, float).reshape(len(names), len(steps))


def _few_ticks(axes: Axes, low: float, high: float) -> None:
    """Round σ values between the ends of the colour bar: within one decade the default marks at most one."""
    candidates = [digit * 10.0**power for power in range(-9, 2) for digit in (1, 1.5, 2, 3, 4, 5, 6, 8)]
    inside = [value for value in candidates if low <= value <= high]
    chosen = inside[:: max(1, len(inside) // 6)] if len(inside) > 1 else [low, high]
    axes.yaxis.set_major_locator(FixedLocator(chosen))
    axes.yaxis.set_major_formatter(FixedFormatter([f"{value:.3g}" for value in chosen]))
    axes.yaxis.set_minor_locator(NullLocator())
