"""Few evaluations: every solver by its default grid at 3 to 20 evaluations, on images, mixtures and schedules.

    python -m bench.studies.few_evaluations mixture    # exact scores: five schedules, unguided and at weight 3
    python -m bench.studies.few_evaluations images     # the bundled network, three seeds, what matters most first
    python -m bench.studies.few_evaluations report     # results/few_evaluations.md from what was measured

Every cell is one line of results/few_evaluations.jsonl and measured once, so that the study may be stopped and
continued. The errors are those of bench/studies/work_precision.py. Guided mixtures have no law that is known: there the
samples are compared with those of the same ids after 100 steps of DPM-Solver-3. A budget counts the evaluations of one
network; guidance makes two of each.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

import fastscore as fs
from bench.records import RESULTS, processor, publish
from bench.studies import work_precision as study
from fastscore import solvers as s
from fastscore.model.analytic import GaussianMixture, score_model
from fastscore.solvers.names import named
from fastscore.solvers.useful import useful

RECORDS = RESULTS / "few_evaluations.jsonl"
# One evaluation a step, deterministic, no Runge-Kutta start: what must be close to the best.
MULTISTEP: dict[str, fs.Solver] = {
    name: named(name)  # pyright: ignore[reportAssignmentType]
    for name in (
        "dpmpp-2m", "unipc", "dpmpp-3m", "dpm-3m", "deis", "lms", "ipndm", "dpm-2m", "gradient-estimation",
        "res-multistep",
    )
} | {
    "unipc, p = 3": s.UniPC(3),
    "sa, tau = 0": s.SASolver(tau=0.0),
    "dpmpp, order 4": s.DPMMultistep(4),
    "deis, order 4": s.DEIS(4),
}  # fmt: skip
# The same of published forms, with a polynomial in t or rho or of first order: what few evaluations make of them.
PUBLISHED: dict[str, fs.Solver] = {
    "plms": named("plms"),  # pyright: ignore[reportAssignmentType]
    "deis-tab": named("deis-tab"),  # pyright: ignore[reportAssignmentType]
    "unipc, p = 1": s.UniPC(1),
    "er-sde, ode": s.ERSDE(3, "ode"),
}
OTHERS: dict[str, fs.Solver] = {
    name: named(name)  # pyright: ignore[reportAssignmentType]
    for name in (
        "sa", "dpmpp-3m-sde", "dpmpp-2m-sde", "er-sde", "ancestral", "pndm", "seeds-2", "seeds-3", "em", "ddim",
        "dpmpp-2s-ancestral", "dpm-2-ancestral", "dpmpp-sde", "dpm-2", "dpmpp-2s", "heun",
    )
}  # fmt: skip
SOLVERS = MULTISTEP | PUBLISHED | OTHERS
MIXTURE = (*MULTISTEP, *PUBLISHED, "sa", "dpmpp-3m-sde", "dpmpp-2m-sde", "er-sde", "ancestral", "pndm")
# What a solver of higher order must not be worse than: its own second order.
SECOND = {
    "dpmpp-3m": "dpmpp-2m",
    "dpmpp, order 4": "dpmpp-2m",
    "unipc, p = 3": "unipc",
    "sa, tau = 0": "unipc",
    "dpm-3m": "dpm-2m",
    "deis": "dpm-2m",
    "deis, order 4": "dpm-2m",
    "lms": "dpm-2m",
    "dpmpp-3m-sde": "dpmpp-2m-sde",
    "sa": "dpmpp-2m-sde",
}
SCHEDULES: dict[str, fs.Schedule] = {
    "EDM": fs.EDM(), "VP": fs.VP(), "sub-VP": fs.SubVP(), "VE": fs.VE(), "flow": fs.Flow(),
}  # fmt: skip
BUDGETS, SMALL = (10, 5, 20), (3, 4, 5, 6, 8, 10, 20)
SEEDS = (0, 1, 2)
ALLOWED = {5: 1.5, 10: 1.25, 20: 1.25}  # times the best


@dataclass(frozen=True)
class FewCell(study.Cell):
    """A solver on its default grid of a schedule, which ``grid`` names."""

    seed: int = 0
    weight: float = 1.0

    def choice(self, model: fs.ScoreModel) -> tuple[fs.Schedule, fs.Solver, Callable[[int], fs.Grid]]:
        """Return schedule, solver, and its default grid of so many steps."""
        schedule, solver = SCHEDULES[self.grid], SOLVERS[self.solver]
        return schedule, solver, study.default_grids(model, schedule, solver)


def part_of(mixture: GaussianMixture) -> GaussianMixture:
    """Return a class of the mixture: every other component."""
    weights = mixture.weights[1::2]
    return GaussianMixture(weights / weights.sum(), mixture.means[1::2], mixture.stds[1::2])


def mixture_cells(num: int) -> Iterator[tuple[FewCell, Callable[[], dict]]]:
    """Yield every cell on mixtures: the whole one, and one class of it guided by the whole at weight 3."""
    whole = study.target()
    model, truth = score_model(whole), study.truth_of(whole, num)
    guided, guidance = score_model(part_of(whole)), fs.Guidance(3.0, model=model)
    fine: dict[str, Tensor] = {}

    def measure(cell: FewCell) -> dict:
        plain = cell.weight == 1.0
        of = model if plain else guided
        sampler = cell.sampler(of, num, guidance=None if plain else guidance)
        if sampler is None:
            return {"nfe": None, "error": None}
        if not plain and cell.grid not in fine:
            exact = fs.Sampler(
                of, schedule=SCHEDULES[cell.grid], solver=s.DPMSolver(3), steps=100, batch=num, guidance=guidance
            )
            fine[cell.grid] = exact.run(range(num), seed=0)
        try:
            error = study.sliced_wasserstein(sampler.run(range(num), seed=0), truth if plain else fine[cell.grid])
        except fs.NonFiniteError:
            error = None
        assert sampler.plan is not None
        return {"nfe": sum(row.evaluate for row in sampler.plan.rows), "error": error}

    for budget, weight in itertools.product((5, 10, 3, 8, 20, 4, 6), (1.0, 3.0)):
        for grid in SCHEDULES:
            for name in MIXTURE if weight == 1.0 else MULTISTEP:
                cell = FewCell("mixture", name, grid, budget, 0, weight)
                yield cell, lambda cell=cell: measure(cell)


def image_cells(num: int, seeds: Sequence[int], batch: int = 64) -> Iterator[tuple[FewCell, Callable[[], dict]]]:
    """Yield the cells on the bundled network and its own schedule, EDM's; equal plans are drawn once."""
    judge, model = study.image_judge(num)[0], fs.load_model("fashion")
    known: dict[tuple[str, int], float] = {}

    def measure(cell: FewCell) -> dict:
        sampler = cell.sampler(model, batch, "auto")
        if sampler is None:
            return {"nfe": None, "error": None}
        assert sampler.plan is not None
        key = sampler.plan.hash, cell.seed
        if key not in known:
            known[key] = judge(sampler, cell.seed)
        return {"nfe": sampler.plan.nfe, "error": known[key]}

    for names in (MULTISTEP, PUBLISHED, OTHERS):
        for seed in seeds:
            for budget in BUDGETS:
                for name in names:
                    cell = FewCell("images", name, "EDM", budget, seed)
                    yield cell, lambda cell=cell: measure(cell)


def image_table(records: list[dict], num: int) -> str:
    """Return the table of classifier-FIDs: means of seeds, and what they are times the best multistep solver's."""
    model = fs.load_model("fashion")

    def grid_of(solver: fs.Solver, steps: int) -> fs.Grid:
        return study.default_grids(model, model.schedule, solver)(steps)

    found: dict[tuple[str, int], dict[int, float]] = {}
    for r in records:
        if r["error"] is not None:
            found.setdefault((r["solver"], r["budget"]), {})[r["seed"]] = r["error"]

    def best(b: int, seeds: Collection[int]) -> float:
        """Return the least mean over these seeds, which differ by more than solvers do."""
        rows = [found[n, b] for n in MULTISTEP if found.get((n, b), {}).keys() >= set(seeds)]
        return min((statistics.mean(row[s] for s in seeds) for row in rows), default=float("nan"))

    budgets = sorted(BUDGETS)
    every = {b: set().union(*(found.get((n, b), {}) for n in MULTISTEP)) for b in budgets}
    lines = [
        "| solver | " + " | ".join(f"{b}" for b in budgets) + " | useful from |",
        "|---|" + "---|" * (len(budgets) + 1),
        "| training images | " + " | ".join([f"{study.image_judge(num)[1]:.3f}"] * len(budgets)) + " | |",
        "| best below | " + " | ".join(f"{best(b, every[b]):.3f}" for b in budgets) + " | |",
    ]
    for name, solver in SOLVERS.items():
        cells = []
        for b in budgets:
            row = found.get((name, b), {})
            if not row:
                cells.append("")
                continue
            values = list(row.values())
            ratio = statistics.mean(values) / best(b, row)
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            mark = " !" if name in MULTISTEP | PUBLISHED and ratio > ALLOWED[b] else ""
            cells.append(f"{statistics.mean(values):.3f}{spread} ({ratio:.2f}{mark})")
        enough = useful(solver, model.schedule, grid_of)
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {enough[0] if enough else 'none'} |")
    return "\n".join(lines)


def mixture_tables(records: list[dict]) -> str:
    """Return errors on EDM, and the worst schedule's error times that of second order."""
    error = {(r["solver"], r["grid"], r["budget"], r["weight"]): r["error"] for r in records}
    head = "| " + " | ".join(str(b) for b in SMALL) + " |\n|---|" + "---|" * len(SMALL)
    parts = []
    for weight, names in ((1.0, MIXTURE), (3.0, MULTISTEP)):
        lines = [f"| solver, EDM, weight {weight:g} " + head]
        for name in names:
            values = [error.get((name, "EDM", b, weight)) for b in SMALL]
            lines.append(f"| {name} | " + " | ".join("" if v is None else f"{v:.3g}" for v in values) + " |")
        parts.append("\n".join(lines))
        lines = [f"| error over that of second order, weight {weight:g} " + head]
        for name, second in SECOND.items():
            if name not in names:
                continue
            cells = []
            for b in SMALL:
                ratios = {}
                for grid in SCHEDULES:
                    ours, theirs = error.get((name, grid, b, weight)), error.get((second, grid, b, weight))
                    if ours is not None and theirs:
                        ratios[grid] = ours / theirs
                worst = max(ratios, key=lambda grid: ratios[grid], default=None)
                cells.append("" if worst is None else f"{ratios[worst]:.2f} ({worst})")
            lines.append(f"| {name} over {second} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def report() -> None:
    """Write the tables, of the number of samples that has the most cells."""
    records = study.load(RECORDS)
    counts = {}
    for name in ("images", "mixture"):
        found = [r["num"] for r in records if r["target"] == name]
        counts[name] = max(found, key=found.count, default=0)
    kept = {name: [r for r in records if r["target"] == name and r["num"] == counts[name]] for name in counts}
    text = f"{processor()}; made by `python -m bench.studies.few_evaluations`. Every solver on its default grid.\n\n"
    if counts["images"]:
        seeds = len({r["seed"] for r in kept["images"]})
        text += (
            f"Classifier-FID of {counts['images']} images of the bundled network, EDM, by evaluations: the mean of up "
            f"to {seeds} seeds and their standard deviation, and in brackets how many times that of the best, with the "
            "same seeds, of our own deterministic multistep solvers, the first of the table. ! is one of those, or of "
            "published ones without a Runge-Kutta start (plms to er-sde), above 1.5 times it at 5 "
            "evaluations or 1.25 times at 10 and 20. Useful from: the evaluations with which Gaussian data come out "
            "within a fifth of their spread (solvers/useful.py); a sampler with fewer says so, if DPM++ 2M would do "
            "better.\n\n" + image_table(kept["images"], counts["images"]) + "\n\n"
        )
    if counts["mixture"]:
        n = counts["mixture"]
        truth = study.truth_of(study.target(), n)
        exact = (study.sliced_wasserstein(study.exact(study.target(), n, seed), truth) for seed in range(10, 19))
        floor = float(np.median(list(exact)))
        text += (
            f"Sliced Wasserstein-2 distance of {n} samples of the mixture of six Gaussians in eight dimensions; exact "
            f"samples are at {floor:.3g}. At guidance weight 3 the distance to a fine run of the same samples. The "
            "tables of ratios have the worst of " + ", ".join(SCHEDULES) + ".\n\n" + mixture_tables(kept["mixture"])
        )
    publish("few_evaluations", "Few evaluations", text.rstrip())
    print(text)


def main() -> None:
    """Run a part of the study; all of it if none is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("mixture", "images", "report"))
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=SEEDS, help="of images; several runs may share them out"
    )
    parser.add_argument("--num", type=int, help="samples a cell [mixture: 4096, images: 2048]")
    args = parser.parse_args()
    if args.part in ("mixture", None):
        study.study(mixture_cells(args.num or 4096), args.num or 4096, RECORDS)
    if args.part in ("images", None):
        study.study(image_cells(args.num or 2048, args.seeds), args.num or 2048, RECORDS)
    report()


if __name__ == "__main__":
    main()
