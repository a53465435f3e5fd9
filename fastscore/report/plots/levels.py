"""Pictures of schedules, and of the plan that a solver makes on one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastscore.errors import typed
from fastscore.plan.rows import Plan
from fastscore.process.schedule import Array, Schedule, f, g2, lam
from fastscore.report.plots.figures import COLOURS, LINES, new_figure, number, plain, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = 513
MARKED = 64  # rows up to which each has a marker


@styled
@typed
def schedules(named: Mapping[str, Schedule]) -> Figure:
    r"""Draw schedules side by side: alpha, sigma, the log-SNR, g^2, the drift and the spread of the marginal.

        ln(alpha^2 / sigma^2),   g^2 = d(sigma^2)/dt - 2 f sigma^2,   f = d ln(alpha)/dt,   sqrt(alpha^2 + sigma^2)

    Time runs from the data at 0 to noise at 1, whatever unit a schedule has: f and g^2 are those of that time, so
    that a DDPM table lies on VP. Values that are no finite numbers, as ln 0 at pure noise, are left out.

    Args:
        named: schedules by name, at least one.

    Raises:
        ValueError: none.
    """
    if not named:
        raise ValueError("schedules: at least one schedule is needed")
    panels = {
        "alpha": "alpha, factor on the data", "sigma": "sigma, of the noise",
        "snr": "log-SNR, ln(alpha^2 / sigma^2)", "g2": "g^2, diffusion (vp: beta)",
        "f": "f, drift (vp: -beta / 2)", "std": "std of x_t, for data of std 1",
    }  # fmt: skip
    figure, axes = new_figure(10.5, 6.0, 2, 3)
    values = {name: _curves(schedule) for name, schedule in named.items()}
    for k, (name, curves) in enumerate(values.items()):
        look = {"color": COLOURS[k % len(COLOURS)], "ls": LINES[k % len(LINES)]}
        for axis, key in zip(axes.flat, panels, strict=True):
            axis.plot(curves["time"], curves[key], label=name if key == "alpha" else None, **look)
    for axis, (key, title) in zip(axes.flat, panels.items(), strict=True):
        axis.set(title=title, xlabel="time, from data (0) to noise (1)", xlim=(-0.02, 1.02))
        found = np.concatenate([curves[key] for curves in values.values()])
        found = np.abs(found[np.isfinite(found)])
        found = found[found > 0.0]
        if key in ("sigma", "g2", "std") and len(found) and found.max() > 10.0:
            axis.set_yscale("log")
        if key == "f" and len(found) and found.max() > 100.0:
            axis.set_yscale("symlog", linthresh=1.0)
    units = [f"{name}: t {_span(schedule)}" for name, schedule in named.items()]
    figure.legend(loc="outside lower center", ncols=min(8, len(named)))
    figure.suptitle("\n".join("    ".join(units[k : k + 4]) for k in range(0, len(units), 4)), fontsize=8.0)
    return figure


def _curves(schedule: Schedule) -> dict[str, Array]:
    """Return time in 0 .. 1 and what is drawn over it, NaN where there is no finite value."""
    first = _first(schedule)
    length = schedule.T - first
    t = np.linspace(first, schedule.T, POINTS)
    with np.errstate(all="ignore"):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        curves = {
            "alpha": alpha, "sigma": sigma, "snr": 2.0 * lam(schedule, t), "g2": g2(schedule, t) * length,
            "f": f(schedule, t) * length, "std": np.hypot(alpha, sigma),
        }  # fmt: skip
    curves = {key: np.where(np.isfinite(v), v, math.nan) for key, v in curves.items()}
    return {"time": (t - first) / length, **curves}


def _first(schedule: Schedule) -> float:
    """Return the time of the data, or where there is none, as of VE, 0."""
    return schedule.t_clean if math.isfinite(schedule.t_clean) else 0.0


def _span(schedule: Schedule) -> str:
    return f"{number(_first(schedule))} .. {number(schedule.T)}"


@styled
@typed
def plan_rows(plan: Plan, title: str = "") -> Figure:
    """Draw a plan: its knots on the log-SNR of the schedule, and each row's coefficients.

        x <- a x + b m + sum_k w_k h_k + c z

    Rows whose b and c are known at run time only, Langevin's, have none here; a knot at sigma = 0 or alpha = 0 lies on
    the edge, as a triangle.

    Args:
        plan: of any solver; its first row draws the prior.
        title: of the figure.
    """
    figure, axes = new_figure(9.0, 7.0, 3, 2)
    schedule, rows, index = plan.schedule, plan.rows[1:], np.arange(1, len(plan.rows))
    knots = np.array([plan.rows[0].s, *(row.s for row in rows)])
    _draw_knots(axes[0, 0], schedule, knots)
    _draw_knots(axes[0, 1], schedule, knots, over_steps=True)
    at_run_time = np.array([row.langevin is not None for row in rows], bool)
    look: dict[str, Any] = {"marker": "o", "ms": 3.5 if len(rows) <= MARKED else 1.5}
    ms = sorted({row.m for row in rows if row.reads_m}) or ["x0"]
    later = f", {at_run_time.sum()} rows set at run time" if at_run_time.any() else ""
    for axis, name, text in (
        (axes[1, 0], "a", "a, of the state x"),
        (axes[1, 1], "b", f"b, of the network's m ({', '.join(ms)}){later}"),
        (axes[2, 1], "c", f"c, of fresh noise z{later}"),
    ):
        known = np.full(len(rows), True) if name == "a" else ~at_run_time
        values = np.array([getattr(row, name) for row in rows], float)
        axis.set(title=text)
        if name == "c" and not values[known].any():
            _say(axis, "of norms of score and noise" if later else "no noise is drawn")
        else:
            axis.plot(index[known], values[known], color=COLOURS[0], **look)
    slots = [k for k in range(plan.slots) if any(len(row.w) > k and row.w[k] for row in rows)]
    for k in slots:
        w = [row.w[k] if len(row.w) > k else 0.0 for row in rows]
        tint = {"color": COLOURS[k % len(COLOURS)], "ls": LINES[k % len(LINES)]}
        axes[2, 0].plot(index, w, label=f"slot {k}", **tint, **look)
    axes[2, 0].set_title("w, of earlier outputs h", loc="left" if slots else "center")
    if slots:  # above the axes, where it hides no line
        axes[2, 0].legend(
            ncols=len(slots), loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.1, handlelength=1.6
        )
    else:
        _say(axes[2, 0], "no earlier outputs are used")
    for axis in axes[1:].flat:
        axis.set(xlabel="row", xlim=axes[1, 0].get_xlim())
        axis.xaxis.get_major_locator().set_params(integer=True)
    nfe = f"{plan.nfe} network evaluations, {plan.draws} noise draws, {plan.slots} history slots"
    figure.suptitle(plain(f"{title}\n{nfe}") if title else nfe)
    return figure


def _draw_knots(axis: Any, schedule: Schedule, knots: Array, over_steps: bool = False) -> None:
    """Draw knots on the log-SNR over time, or over their number."""
    with np.errstate(all="ignore"):
        snr = 2.0 * lam(schedule, knots)
    inside = np.isfinite(snr)
    known = snr[inside] if inside.any() else np.zeros(1)
    margin = 0.06 * float(np.ptp(known)) + 0.5
    low, high = float(known.min()) - margin, float(known.max()) + margin
    last = schedule.T if not np.isfinite(knots).any() else float(np.max(knots[np.isfinite(knots)]))
    finite_knots = np.where(np.isfinite(knots), knots, min(_first(schedule), float(np.min(knots[np.isfinite(knots)]))))
    where = np.arange(len(knots)) if over_steps else finite_knots
    if not over_steps:
        t = np.linspace(float(finite_knots.min()), last, POINTS)
        with np.errstate(all="ignore"):
            curve = 2.0 * lam(schedule, t)
        axis.plot(t, np.where(np.isfinite(curve), curve, math.nan), color="0.6", zorder=1)
        axis.invert_xaxis()
    small = {"s": 14 if len(knots) <= MARKED else 4, "color": COLOURS[1], "zorder": 2, "clip_on": False}
    axis.scatter(where[inside], snr[inside], **small)
    for edge, mark, beyond in ((high, "^", snr == math.inf), (low, "v", snr == -math.inf)):
        axis.scatter(where[beyond], np.full(int(beyond.sum()), edge), marker=mark, **(small | {"s": 36}))
    axis.set(ylim=(low, high), ylabel="log-SNR")
    if over_steps:
        axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set(xlabel="knot", title="the same, one after the other") if over_steps else axis.set(
        xlabel="t, noise on the left", title="knots on the schedule (▲ sigma = 0, ▼ alpha = 0)"
    )


def _say(axis: Any, text: str) -> None:
    axis.set_yticks([])
    axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center", color="0.4")
