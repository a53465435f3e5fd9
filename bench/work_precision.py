"""Work and precision: how far samples are from the truth after so many network evaluations, for every solver.

    python bench/work_precision.py mixture      # exact scores: every solver, every budget
    python bench/work_precision.py images       # the bundled network: the solvers of IMAGES
    python bench/work_precision.py report       # figure, table and recommendation from what was measured

Errors are the sliced Wasserstein-2 distance to exact samples of a Gaussian mixture, and the classifier-FID of
the bundled model. Every cell is one line of results/work_precision.jsonl; a cell that is there is not measured
again, so a study may be stopped and continued. Nothing is timed here: the axis is evaluations.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date

import numpy as np
import torch
from records import RESULTS, ROOT, between, processor
from torch import Tensor
from tqdm import tqdm

import fastscore as fs
from fastscore import plan as plans
from fastscore import solvers as s
from fastscore.model.analytic import GaussianMixture, score_model
from fastscore.ops.noise import NoiseKey
from fastscore.solvers.adaptive import Adaptive

RECORDS = RESULTS / "work_precision.jsonl"
FIGURE = RESULTS / "work_precision.png"
BUDGETS = (5, 10, 20, 50, 200, 1000)

# By the names of `fastscore sample --solver`, where it has one.
SOLVERS: dict[str, fs.Solver] = {
    "euler": s.Euler(),
    "ddim": s.DDIM(),
    "heun": s.Heun(),
    "midpoint": s.RK2(),
    "rk4": s.RK4(),
    "implicit-midpoint": s.ImplicitMidpoint(),
    "dpm-2": s.DPMSolver(2),
    "dpm-3": s.DPMSolver(3),
    "dpmpp-2s": s.DPMSolver(2, "x0"),
    "dpmpp-3s": s.DPMSolver(3, "x0"),
    "dpm-2m": s.DPMMultistep(2, "eps", "paper"),
    "dpm-3m": s.DPMMultistep(3, "eps"),
    "dpmpp-2m": s.DPMpp2M(),
    "dpmpp-3m": s.DPMMultistep(3),
    "unipc": s.UniPC(),
    "deis": s.DEIS(),
    "lms": s.LMS(),
    "pndm": s.PNDM(),
    "plms": s.PNDM(prk=False),
    "ipndm": s.IPNDM(),
    "em": s.EulerMaruyama(),
    "ancestral": s.Ancestral(),
    "reverse-diffusion": s.ReverseDiffusion(),
    "heun-sde": s.StochasticHeun(),
    "reverse-diffusion, ald": s.PredictorCorrector(s.ReverseDiffusion(), s.AnnealedLangevin()),
    "edm-churn": s.Churn(),
    "dpm-2-ancestral": s.AncestralSplit(s.DPMSolver(2)),
    "dpmpp-2s-ancestral": s.AncestralSplit(s.DPMSolver(2, "x0")),
    "dpmpp-sde": s.DPMSolver(2, "x0", 1.0),
    "dpmpp-2m-sde": s.DPMMultistep(2, "x0", "paper", 1.0),
    "dpmpp-3m-sde": s.DPMMultistep(3, "x0", "exact", 1.0),
    "sa": s.SASolver(),
}
ADAPTIVE: dict[str, Callable[[float], Adaptive]] = {
    "dopri5": lambda rtol: s.Dopri5(rtol, rtol),
    "bs32": lambda rtol: s.BogackiShampine(rtol, rtol),
    "dpm12": lambda rtol: s.DPMAdaptive(2, rtol, rtol),
    "dpm23": lambda rtol: s.DPMAdaptive(3, rtol, rtol),
    "ggf": lambda rtol: s.GottaGoFast(rtol, rtol),
}
TOLERANCES = (1e-1, 3e-2, 1e-2, 1e-3, 1e-4)
FAMILIES = {
    "ODE, one step": tuple(SOLVERS)[:10],
    "ODE, several steps": tuple(SOLVERS)[10:20],
    "SDE": tuple(SOLVERS)[20:],
}  # fmt: skip
GRIDS: dict[str, tuple[fs.Schedule, Callable[[int], fs.Grid]]] = {
    "karras levels": (fs.EDM(), fs.karras),
    "even VP times": (fs.VP(), lambda steps: fs.uniform(steps, clean=True)),
}
# One evaluation a step, so that K steps are K evaluations, and the best of each family on mixtures.
IMAGES = ("dpmpp-2m", "dpmpp-3m", "unipc", "deis", "ddim", "dpmpp-2m-sde", "dpmpp-3m-sde", "sa", "ancestral")

# Long runs cost hours on a CPU; the recommendation for a budget that has none is that of the budget before it.
TIE = 0.05
FINALISTS = {200: ("dpmpp-2m", "ancestral")}


@dataclass(frozen=True)
class Cell:
    """One measurement: a solver on a grid within a budget."""

    target: str
    solver: str
    grid: str
    budget: float

    def sampler(self, model: fs.ScoreModel, batch: int, network: str = "own") -> fs.Sampler | None:
        """Return the sampler with the most steps within the budget; None if one step exceeds it."""
        schedule, grid = GRIDS[self.grid]
        solver = SOLVERS[self.solver]

        def nfe(steps: int) -> int:
            try:
                return plans.make_plan(solver, schedule, grid(steps)(schedule)).nfe
            except ValueError:  # fewer steps than the solver needs
                return int(self.budget) + 1 if steps > 1 else 0

        low, high = 0, int(self.budget) + 1  # nfe grows with steps
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if nfe(middle) <= self.budget else (low, middle)
        if low == 0 or nfe(low) < 0.5 * self.budget:
            return None
        return fs.Sampler(model, schedule=schedule, solver=solver, grid=grid(low), batch=batch, network=network)


def target() -> GaussianMixture:
    """Return the mixture: six components of unequal weights and widths in eight dimensions."""
    means = NoiseKey.of(1, range(6)).normal(0, 8, torch.float64)
    weights = torch.arange(1.0, 7.0, dtype=torch.float64)
    return GaussianMixture(weights / weights.sum(), means, torch.logspace(-1.3, -0.4, 6, dtype=torch.float64))


def exact(mixture: GaussianMixture, n: int, seed: int) -> Tensor:
    """Return n exact samples."""
    key = NoiseKey.of(seed, range(n))
    return mixture.sample(key.normal(0, mixture.means.shape[1]), key.uniform(1, 1)[:, 0])


def truth_of(mixture: GaussianMixture, n: int) -> Tensor:
    """Return n exact samples with each component in its exact share, to compare with."""
    z = NoiseKey.of(3, range(n)).normal(0, mixture.means.shape[1])
    return mixture.sample(z, (torch.arange(n) + 0.5) / n)


def sliced_wasserstein(x: Tensor, y: Tensor, projections: int = 128) -> float:
    r"""Return the sliced Wasserstein-2 distance (mean over directions of W_2^2)^(1/2) of two sets [N, D].

    Source: Rabin et al. 2011; directions are the same in every call.
    """
    directions = NoiseKey.of(2, range(projections)).normal(0, x.shape[1], torch.float64)
    directions /= directions.norm(dim=1, keepdim=True)
    a, b = ((v.double() @ directions.T).sort(dim=0).values for v in (x, y))
    return math.sqrt(float((a - b).square().mean()))


def mixture_cells(num: int) -> Iterator[tuple[Cell, Callable[[], dict]]]:
    """Yield every cell on the mixture with what measures it."""
    mixture = target()
    model, truth = score_model(mixture), truth_of(mixture, num)
    for budget in BUDGETS:
        for name in SOLVERS:
            for grid in GRIDS:
                cell = Cell("mixture", name, grid, budget)

                def measure(cell: Cell = cell) -> dict:
                    sampler = cell.sampler(model, num)
                    if sampler is None:
                        return {"nfe": None, "error": None}
                    try:
                        x = sampler.run(range(num), seed=0)
                    except fs.NonFiniteError:
                        return {"nfe": sampler.plan.nfe, "error": None}
                    return {"nfe": sampler.plan.nfe, "error": sliced_wasserstein(x, truth)}

                yield cell, measure


def adaptive_cells(num: int) -> Iterator[tuple[Cell, Callable[[], dict]]]:
    """Yield a cell for each adaptive solver and tolerance, which stands in place of the budget."""
    mixture = target()
    model, truth = score_model(mixture), truth_of(mixture, num)
    for name, make in ADAPTIVE.items():
        for rtol in TOLERANCES:

            def measure(make: Callable[[float], Adaptive] = make, rtol: float = rtol) -> dict:
                sampler = fs.Sampler(model, schedule=fs.EDM(), solver=make(rtol), batch=min(num, 8192))
                error = sliced_wasserstein(sampler.run(range(num), seed=0), truth)
                return {"nfe": round(float(sampler.cost.nfe.double().mean()), 1), "error": error}

            yield Cell("mixture", name, "adaptive", rtol), measure


def image_cells(num: int, batch: int = 64) -> Iterator[tuple[Cell, Callable[[], dict]]]:
    """Yield the cells on the bundled network; longer budgets with fewer solvers, the best ones so far."""
    from fastscore.data.load import load
    from fastscore.ops.quantize import quantize_ref
    from fastscore.report.metrics import features, frechet_distance
    from fastscore.training.classifier import load_classifier

    net, _ = load_classifier("fashion-classifier")
    reference, _ = features(net, load("fashion-mnist", "test").x)
    model = fs.load_model("fashion")
    for budget in BUDGETS:
        for name in IMAGES if budget <= 50 else FINALISTS.get(budget, ()):
            cell = Cell("images", name, "karras levels", budget)

            def measure(cell: Cell = cell) -> dict:
                sampler = cell.sampler(model, batch, "auto")
                assert sampler is not None
                parts = [quantize_ref(x).numpy() for _, x in sampler.stream(range(num), seed=0, labels="random")]
                found, _ = features(net, np.concatenate(parts))
                return {"nfe": sampler.plan.nfe, "error": frechet_distance(found, reference)}

            yield cell, measure


def study(cells: Iterator[tuple[Cell, Callable[[], dict]]], num: int) -> None:
    """Measure what is not measured yet, a line each."""
    done = {(r["target"], r["solver"], r["grid"], r["budget"]) for r in load() if r["num"] == num}
    RESULTS.mkdir(exist_ok=True)
    with RECORDS.open("a") as file:
        for cell, measure in tqdm(list(cells), unit="cell"):
            if (cell.target, cell.solver, cell.grid, cell.budget) in done:
                continue
            record = {**cell.__dict__, "num": num, **measure(), "cpu": processor(), "torch": torch.__version__}
            file.write(json.dumps({**record, "date": date.today().isoformat()}) + "\n")
            file.flush()


def load() -> list[dict]:
    """Return the records."""
    return [json.loads(line) for line in RECORDS.read_text().splitlines()] if RECORDS.exists() else []


def best(records: list[dict], target: str) -> dict[str, dict[int, dict]]:
    """Return the record of each solver and budget, on the grid that suits it better."""
    found: dict[str, dict[int, dict]] = {}
    for r in records:
        if r["target"] == target and r["error"] is not None:
            row = found.setdefault(r["solver"], {})
            if r["budget"] not in row or r["error"] < row[r["budget"]]["error"]:
                row[r["budget"]] = r
    return found


def recommended(records: list[dict]) -> dict[int, str]:
    """Return the solver of least classifier-FID for each budget; that of the budget before if none is better by TIE."""
    rows, chosen, last = best(records, "images"), {}, None
    for k in BUDGETS:
        errors = {name: rows[name][k]["error"] for name in rows if k in rows[name]}
        least = min(errors, key=lambda name: errors[name], default=last)
        if last not in errors or errors[least] < (1.0 - TIE) * errors[last]:
            last = least if errors else last
        if last:
            chosen[k] = last
    return chosen


def table(records: list[dict], target: str) -> str:
    """Return one table: solvers down, budgets across."""
    rows = best(records, target)
    least = {k: min((row[k]["error"] for row in rows.values() if k in row), default=math.nan) for k in BUDGETS}
    lines = ["| solver | " + " | ".join(str(k) for k in BUDGETS) + " |", "|---" * (1 + len(BUDGETS)) + "|"]
    for name in (name for name in SOLVERS if name in rows):
        cells = []
        for k in BUDGETS:
            r = rows[name].get(k)
            if r is None:
                cells.append("")
                continue
            text = f"{r['error']:.3g}" + (" (t)" if r["grid"] == "even VP times" else "")
            cells.append(f"**{text}**" if r["error"] == least[k] else text)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def adaptive_table(records: list[dict]) -> str:
    """Return the table of the adaptive solvers: error after so many evaluations, by tolerance."""
    rows = best(records, "mixture")
    lines = [
        "| solver | " + " | ".join(f"{rtol:g}" for rtol in TOLERANCES) + " |",
        "|---" * (1 + len(TOLERANCES)) + "|",
    ]
    for name in (name for name in ADAPTIVE if name in rows):
        cells = [rows[name].get(rtol) for rtol in TOLERANCES]
        shown = ("" if r is None else f"{r['error']:.3g} ({r['nfe']:.0f})" for r in cells)
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def figure(records: list[dict], floors: dict[str, float]) -> None:
    """Draw both studies, the lowest lines of each panel named."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    families = {**FAMILIES, "adaptive": tuple(ADAPTIVE)}
    panels = [("mixture", names, title) for title, names in families.items()] + [("images", IMAGES, "bundled network")]
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
        if target_name in floors:
            axis.axhline(floors[target_name], color="0.5", lw=0.8, ls=":")
            axis.annotate("exact samples", (BUDGETS[0], floors[target_name]), fontsize=7, va="bottom", color="0.4")
        axis.set(xscale="log", yscale="log", xlabel="network evaluations", title=title)
        axis.set_ylabel("sliced Wasserstein-2" if target_name == "mixture" else "classifier-FID")
        most = max((r["nfe"] for name, row in rows.items() if name in names for r in row.values()), default=0)
        ticks = [k for k in BUDGETS if k <= most]
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


def report() -> None:
    """Write figure and tables."""
    records = load()
    counts = {
        name: max((r["num"] for r in records if r["target"] == name), default=0) for name in ("mixture", "images")
    }
    records = [r for r in records if r["num"] == counts[r["target"]]]
    mixture, floors = target(), {}
    if n := counts["mixture"]:
        truth = truth_of(mixture, n)
        sets = [sliced_wasserstein(exact(mixture, n, seed), truth) for seed in range(10, 19)]
        floors["mixture"] = float(np.median(sets))
    figure(records, floors)
    chosen = ", ".join(f"{name} at {k}" for k, name in recommended(records).items())
    last = records[-1]
    text = "\n\n".join([
        f"{last['cpu']}, torch {last['torch']}, {last['date']}; made by `python bench/work_precision.py`.",
        "![error against evaluations](results/work_precision.png)",
        f"Sliced Wasserstein-2 distance of {counts['mixture']} samples from a mixture of six Gaussians in eight "
        f"dimensions, by network evaluations; exact samples are at {floors.get('mixture', math.nan):.3g}, "
        "below which figures differ by chance. "
        "Each cell takes the better of Karras levels (EDM) and, marked (t), even times of VP.",
        table(records, "mixture"),
        "Adaptive solvers on the same mixture, EDM, rtol = atol; evaluations are the mean of all samples:",
        adaptive_table(records),
        f"Classifier-FID of {counts['images']} images of the bundled network, one seed, Karras levels:",
        table(records, "images"),
        f"Recommended, and what `fastscore sample --steps K` takes without `--solver`: {chosen}. A solver stays unless "
        f"another is {TIE:.0%} better; a budget without images takes that of the budget before.",
    ])  # fmt: skip
    readme = ROOT / "bench" / "README.md"
    readme.write_text(between(readme.read_text(), "work-precision", text))
    print(text)


def main() -> None:
    """Run a part of the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("mixture", "images", "report"))
    parser.add_argument("--num", type=int, help="samples a cell [mixture: 16384, images: 2048]")
    args = parser.parse_args()
    if args.part == "report":
        report()
    elif args.part == "mixture":
        num = args.num or 16384
        study(itertools.chain(mixture_cells(num), adaptive_cells(num)), num)
    else:
        study(image_cells(args.num or 2048), args.num or 2048)


if __name__ == "__main__":
    main()
