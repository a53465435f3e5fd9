"""Work and precision: how far samples are from the truth after so many network evaluations, for every solver.

    python -m bench.studies.work_precision mixture      # exact scores: every solver, every budget
    python -m bench.studies.work_precision images       # the bundled network: the solvers of IMAGES
    python -m bench.studies.work_precision report       # figure, table and recommendation from what was measured

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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import fastscore as fs
from bench.records import RESULTS, append, processor, publish
from bench.studies import precision_settings as settings
from bench.studies import precision_tables as tables
from fastscore import plan as plans
from fastscore.engine.bind import fitting
from fastscore.model.analytic import GaussianMixture, score_model
from fastscore.ops.noise import NoiseKey
from fastscore.report.quality import sliced_wasserstein
from fastscore.solvers.adaptive import Adaptive

RECORDS = RESULTS / "work_precision.jsonl"


@dataclass(frozen=True)
class Cell:
    """One measurement: a solver on a grid within a budget."""

    target: str
    solver: str
    grid: str
    budget: float

    def choice(self, model: fs.ScoreModel) -> tuple[fs.Schedule, fs.Solver, Callable[[int], fs.Grid]]:
        """Return schedule, solver, and the grid of so many steps."""
        schedule, grid = settings.GRIDS[self.grid]
        solver = settings.SOLVERS[self.solver]
        return schedule, solver, grid or default_grids(model, schedule, solver)

    def sampler(self, model: fs.ScoreModel, batch: int, network: str = "own", **more: Any) -> fs.Sampler | None:
        """Return the sampler with the most steps within the budget; None if one step exceeds it."""
        schedule, solver, grid = self.choice(model)

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
        execution = fs.Execution(batch=batch, network=network)
        return fs.Sampler(model, schedule=schedule, solver=solver, grid=grid(low), execution=execution, **more)


def default_grids(model: fs.ScoreModel, schedule: fs.Schedule, solver: fs.Solver) -> Callable[[int], fs.Grid]:
    """Return what gives the default grid of so many steps."""

    def grid(steps: int) -> fs.Grid:
        found = fitting(model, schedule, solver, None, steps)
        assert isinstance(found, fs.Grid)
        return found

    return grid


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


def mixture_cells(num: int) -> Iterator[tuple[Cell, Callable[[], dict]]]:
    """Yield every cell on the mixture with what measures it."""
    mixture = target()
    model, truth = score_model(mixture), truth_of(mixture, num)
    for budget in settings.BUDGETS:
        for name in settings.SOLVERS:
            for grid in settings.GRIDS:
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
    for name, make in settings.ADAPTIVE.items():
        for rtol in settings.TOLERANCES:

            def measure(make: Callable[[float], Adaptive] = make, rtol: float = rtol) -> dict:
                sampler = fs.Sampler(model, schedule=fs.EDM(), solver=make(rtol), batch=min(num, 8192))
                error = sliced_wasserstein(sampler.run(range(num), seed=0), truth)
                return {"nfe": round(float(sampler.cost.nfe.double().mean()), 1), "error": error}

            yield Cell("mixture", name, "adaptive", rtol), measure


def image_judge(num: int) -> tuple[Callable[[fs.Sampler, int], float], float]:
    """Return what draws num images of the bundled model and gives their classifier-FID, and that of training images."""
    from fastscore.data.load import load
    from fastscore.ops.quantize import quantize_ref
    from fastscore.report.metrics import features, frechet_distance
    from fastscore.training.classifier import load_classifier

    net, _ = load_classifier("fashion-classifier")
    reference, _ = features(net, load("fashion-mnist", "test").x)

    def judge(sampler: fs.Sampler, seed: int) -> float:
        parts = [quantize_ref(x).numpy() for _, x in sampler.stream(range(num), seed=seed, labels="random")]
        return frechet_distance(features(net, np.concatenate(parts))[0], reference)

    return judge, frechet_distance(features(net, load("fashion-mnist").x[:num])[0], reference)


def image_cells(num: int, batch: int = 64) -> Iterator[tuple[Cell, Callable[[], dict]]]:
    """Yield the cells on the bundled network; longer budgets with fewer solvers, the best ones so far.

    What the study of few evaluations has measured is taken from there.
    """
    judge, _ = image_judge(num)
    model = fs.load_model("fashion")
    first = (
        r
        for r in load(RESULTS / "few_evaluations.jsonl")
        if (r["target"], r["seed"], r["num"]) == ("images", settings.IMAGE_SEED, num)
    )
    known = {(r["solver"], r["budget"]): {"nfe": r["nfe"], "error": r["error"]} for r in first}
    for budget in settings.BUDGETS:
        for name in settings.IMAGES if budget <= 20 else settings.FINALISTS.get(budget, ()):
            cell = Cell("images", name, "default", budget)

            def measure(cell: Cell = cell) -> dict:
                if (cell.solver, cell.budget) in known:
                    return known[cell.solver, cell.budget]
                sampler = cell.sampler(model, batch, "auto")
                assert sampler is not None
                return {"nfe": sampler.plan.nfe, "error": judge(sampler, settings.IMAGE_SEED)}

            yield cell, measure


def study(cells: Iterator[tuple[Cell, Callable[[], dict]]], num: int, file: Path | None = None) -> None:
    """Measure what is not measured yet, a line each."""
    file = file or RECORDS
    present = [r for r in load(file) if r["num"] == num]
    for cell, measure in tqdm(list(cells), unit="cell"):
        if not any(cell.__dict__.items() <= r.items() for r in present):
            record = {**cell.__dict__, "num": num, **measure(), "cpu": processor(), "torch": torch.__version__}
            append(file, {**record, "date": date.today().isoformat()})


def load(file: Path | None = None) -> list[dict]:
    """Return the records."""
    file = file or RECORDS
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def report() -> None:
    """Write picture and tables, of the runs with the most samples."""
    records = load()
    counts = {
        name: max((r["num"] for r in records if r["target"] == name), default=0) for name in ("mixture", "images")
    }
    records = [r for r in records if r["num"] == counts[r["target"]]]
    mixture, floor = target(), math.nan
    if n := counts["mixture"]:
        truth = truth_of(mixture, n)
        floor = float(np.median([sliced_wasserstein(exact(mixture, n, seed), truth) for seed in range(10, 19)]))
    tables.figure(records, floor)
    text = tables.text(records, counts, floor)
    publish("work_precision", "Work and precision", text)
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
