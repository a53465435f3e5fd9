"""Tables, picture and recommendation of the study of work and precision, from its records."""

from __future__ import annotations

import math

from bench.records import RESULTS
from bench.studies import precision_settings as settings
from fastscore.solvers.names import DEFAULT

MARKS = {"karras levels": " (k)", "even VP times": " (t)"}
FIGURE = RESULTS / "work_precision.png"


def best(records: list[dict], target: str) -> dict[str, dict[int, dict]]:
    """Return the record of each solver and budget, on the grid that suits it better."""
    rows: dict[str, dict[int, dict]] = {}
    for r in records:
        if r["target"] == target and r["error"] is not None:
            row = rows.setdefault(r["solver"], {})
            if r["budget"] not in row or r["error"] < row[r["budget"]]["error"]:
                row[r["budget"]] = r
    return rows


def recommended(records: list[dict]) -> dict[int, str]:
    """Return for each budget the default solver, or that of least classifier-FID if it is better by TIE."""
    rows, chosen = best(records, "images"), {}
    for k in settings.BUDGETS:
        errors = {name: rows[name][k]["error"] for name in rows if k in rows[name]}
        lowest = min(errors, key=lambda name: errors[name], default=DEFAULT)
        better = DEFAULT not in errors or errors[lowest] < (1.0 - settings.TIE) * errors[DEFAULT]
        chosen[k] = lowest if better else DEFAULT
    return chosen


def table(records: list[dict], target: str) -> str:
    """Return one table: solvers down, budgets across."""
    rows = best(records, target)
    budgets = settings.BUDGETS
    lowest = {k: min((row[k]["error"] for row in rows.values() if k in row), default=math.nan) for k in budgets}
    lines = ["| solver | " + " | ".join(str(k) for k in budgets) + " |", "|---" * (1 + len(budgets)) + "|"]
    for name in (name for name in settings.SOLVERS if name in rows):
        cells = []
        for k in budgets:
            r = rows[name].get(k)
            if r is None:
                cells.append("")
                continue
            text = f"{r['error']:.3g}{MARKS.get(r['grid'], '')}"
            cells.append(f"**{text}**" if r["error"] == lowest[k] else text)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def adaptive_table(records: list[dict]) -> str:
    """Return the table of the adaptive solvers: error after so many evaluations, by tolerance."""
    rows = best(records, "mixture")
    lines = [
        "| solver | " + " | ".join(f"{rtol:g}" for rtol in settings.TOLERANCES) + " |",
        "|---" * (1 + len(settings.TOLERANCES)) + "|",
    ]
    for name in (name for name in settings.ADAPTIVE if name in rows):
        cells = [rows[name].get(rtol) for rtol in settings.TOLERANCES]
        texts = ("" if r is None else f"{r['error']:.3g} ({r['nfe']:.0f})" for r in cells)
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def figure(records: list[dict], floor: float) -> None:
    """Draw both studies, the lowest lines of each panel named."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    families = {**settings.FAMILIES, "adaptive": tuple(settings.ADAPTIVE)}
    panels = [("mixture", names, title) for title, names in families.items()]
    panels.append(("images", settings.IMAGES, "bundled network"))
    fig, grid = plt.subplots(2, -(-len(panels) // 2), figsize=(15.0, 9.0), constrained_layout=True)
    axes = grid.flat[: len(panels)]
    for empty in grid.flat[len(panels) :]:
        empty.axis("off")
    for axis, (target_name, names, title) in zip(axes, panels, strict=True):
        rows = best(records, target_name)
        colours = plt.get_cmap("tab20")
        for number, name in enumerate(name for name in names if name in rows):
            points = sorted((r["nfe"], r["error"]) for r in rows[name].values())
            style = "-" if number < 10 else "--"
            axis.plot(
                *zip(*points, strict=True), style, marker="o", ms=3, lw=1.2, label=name, color=colours(number % 20)
            )
        if target_name == "mixture" and not math.isnan(floor):
            axis.axhline(floor, color="0.5", lw=0.8, ls=":")
            axis.annotate("exact samples", (settings.BUDGETS[0], floor), fontsize=7, va="bottom", color="0.4")
        axis.set(xscale="log", yscale="log", xlabel="network evaluations", title=title)
        axis.set_ylabel("sliced Wasserstein-2" if target_name == "mixture" else "classifier-FID")
        highest = max((r["nfe"] for name, row in rows.items() if name in names for r in row.values()), default=0)
        ticks = [k for k in settings.BUDGETS if k <= highest]
        axis.set_xticks(ticks, [str(k) for k in ticks])
        axis.minorticks_off()
        if any(name in rows for name in names):
            axis.legend(fontsize=7, frameon=False)
        axis.grid(alpha=0.25, lw=0.5)
    low = min(axis.get_ylim()[0] for axis in axes[:-1])
    high = max(axis.get_ylim()[1] for axis in axes[:-1])
    for axis in axes[:-1]:
        axis.set_ylim(low, min(high, 3.0))
    fig.savefig(FIGURE, dpi=110)


def text(records: list[dict], counts: dict[str, int], floor: float) -> str:
    """Return the tables with what stands around them; ``floor`` is the error of exact samples."""
    chosen = ", ".join(f"{name} at {k}" for k, name in recommended(records).items())
    last = records[-1]
    return "\n\n".join([
        f"{last['cpu']}, torch {last['torch']}, {last['date']}; made by `python -m bench.studies.work_precision`.",
        "![error against evaluations](work_precision.png)",
        f"Sliced Wasserstein-2 distance of {counts['mixture']} samples from a mixture of six Gaussians in eight "
        f"dimensions, by network evaluations; exact samples are at {floor:.3g}, "
        "below which figures differ by chance. "
        "Each cell takes the best of the solver's default grid, marked (k) Karras levels, both of EDM, and (t) even "
        "times of VP. Blank cells are not measured.",
        table(records, "mixture"),
        "Adaptive solvers on the same mixture, EDM, rtol = atol; evaluations are the mean of all samples:",
        adaptive_table(records),
        f"Classifier-FID of {counts['images']} images of the bundled network, one seed, default grids:",
        table(records, "images"),
        f"Recommended: {chosen}. It is {DEFAULT}, which `fastscore sample` takes without `--solver`, unless another is "
        f"{settings.TIE:.0%} better on images; budgets without images keep it.",
    ])  # fmt: skip
