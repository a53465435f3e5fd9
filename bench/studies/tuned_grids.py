"""Fitted grids on the bundled model: classifier-FID and sliced W2 at 6 and 10 evaluations, of fitted and named grids.

    python -m bench.studies.tuned_grids fit        # fits what is not kept beside the model yet: minutes on two cores
    python -m bench.studies.tuned_grids measure    # every cell that is not measured yet; may be stopped and continued
    python -m bench.studies.tuned_grids guided     # what an unguided fit is worth with guidance: errors at the end
    python -m bench.studies.tuned_grids report     # bench/results/tuned_grids.md

Cells are lines of results/tuned_grids.jsonl. Seeds and ids of the measurement are none of those of the fits. Every seed
has its own 40 steps, default and named grids, from the same noise and with all classes alike: gains are differences
within a seed, and no class is there more often by chance.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import fastscore as fs
from bench.records import RESULTS, append, processor, publish
from bench.studies.work_precision import sliced_wasserstein
from fastscore.data.load import load
from fastscore.engine.fit_error import EndError
from fastscore.engine.fitted import read
from fastscore.model.folder import BUNDLED
from fastscore.ops.quantize import quantize_ref
from fastscore.report.metrics import features, frechet_distance
from fastscore.training.classifier import load_classifier

RECORDS, MODEL, TABLE = RESULTS / "tuned_grids.jsonl", "fashion", BUNDLED / "fashion" / "tuned.json"
SEEDS, NUM, FIT_SEED, BATCH = (201, 202, 203), 2048, 1606, 64
BUDGETS, WEIGHTS = (6, 10), (2.0, 4.0)
# Named grids beside the default one: what people take at few steps, and Karras' levels cut off at other ends.
KARRAS: dict[str, dict[str, Any]] = {
    "karras, rho 5": {"rho": 5.0},
    "karras, sigma_min 0.01": {"end": 0.01},
    "karras, sigma_min 0.02": {"end": 0.02},
    "karras, sigma_min 0.03": {"end": 0.03},
}
NAMED = ("ays-svd", "kl-optimal", "polyexponential", "beta")


def cells(model: fs.ScoreModel, network: str) -> dict[str, Callable[[], fs.Sampler]]:
    """Return how to make each sampler, the most telling first."""
    settings: dict[str, Any] = {"batch": BATCH, "network": network}
    made: dict[str, Callable[[], fs.Sampler]] = {}
    for n in BUDGETS:
        made[f"tuned, {n}"] = lambda n=n: fs.Sampler(model, grid="tuned", steps=n, **settings)
        made[f"default, {n}"] = lambda n=n: fs.Sampler(model, steps=n, **settings)
        made.setdefault("40 steps", lambda: fs.Sampler(model, steps=40, **settings))
    for n in BUDGETS:
        for name, how in KARRAS.items():
            made[f"{name}, {n}"] = lambda n=n, how=how: fs.Sampler(model, grid=fs.karras(n, **how), **settings)
        for name in NAMED:
            made[f"{name}, {n}"] = lambda n=n, name=name: fs.Sampler(model, grid=name, steps=n, **settings)
    return made


def measure(network: str, seeds: Sequence[int] = SEEDS, only: str = "") -> None:
    """Measure what is not measured yet, a line each; what is not fitted yet is left for later."""
    model, (net, _) = fs.load_model(MODEL), load_classifier("fashion-classifier")
    test = load("fashion-mnist", "test").x
    reference, pixels = features(net, test)[0], _pixels(test[:NUM])
    labels = torch.arange(NUM) % model.classes
    there = {(r["cell"], r["seed"], r["num"], r["plan"]) for r in records() if "cell" in r}
    work = [(cell, make, seed) for seed in seeds for cell, make in cells(model, network).items() if only in cell]
    for cell, make, seed in tqdm(work, unit="cell"):
        try:
            sampler = make()
        except ValueError as error:
            tqdm.write(f"{cell}: {error}")
            continue
        assert sampler.plan is not None
        if (cell, seed, NUM, sampler.plan.hash) in there:
            continue
        begun = time.perf_counter()
        images = np.concatenate(
            [quantize_ref(x).numpy() for _, x in sampler.stream(range(NUM), seed=seed, labels=labels)]
        )
        record = {
            "cell": cell, "seed": seed, "num": NUM, "plan": sampler.plan.hash, "solver": repr(sampler.solver),
            "evaluations": sampler.plan.nfe,
            "fid": frechet_distance(features(net, images)[0], reference),
            "sw2": sliced_wasserstein(_pixels(images), pixels),
            "seconds": round(time.perf_counter() - begun, 1), "network": sampler.numerics.dtype,
            "cpu": processor(), "torch": torch.__version__, "date": date.today().isoformat(),
        }  # fmt: skip
        append(RECORDS, record)


def _pixels(images: np.ndarray) -> torch.Tensor:
    """Return images as points, black 0 and white 1."""
    return torch.from_numpy(images.reshape(len(images), -1).astype(np.float64) / 255.0)


def fit(network: str) -> None:
    """Fit the budgets that are not kept beside the model yet."""
    model = fs.load_model(MODEL)
    for n in BUDGETS:
        if TABLE.exists() and any(one.steps == n for one in read(TABLE)):
            continue
        found = fs.fit_grid(model, n, seed=FIT_SEED, batch=BATCH, network=network, progress=True)
        found.keep(TABLE.parent)


def guided(network: str) -> None:
    """Measure the end errors of guided runs on the default grid and on those that were fitted without guidance."""
    model, ids = fs.load_model(MODEL), range(10_000, 10_096)
    there = {(r["guided"], r["weight"]) for r in records() if "guided" in r}
    for weight in WEIGHTS:
        guidance = fs.Guidance(weight)

        def draw(guidance: fs.Guidance = guidance, **grid: Any) -> torch.Tensor:
            sampler = fs.Sampler(model, guidance=guidance, batch=BATCH, network=network, **grid)
            return sampler.run(ids, SEEDS[0], labels="random").flatten(1)

        named: dict[str, dict[str, Any]] = {f"default, {n}": {"steps": n} for n in BUDGETS}
        named |= {f"tuned, {n}": {"grid": "tuned", "steps": n} for n in BUDGETS}
        named = {cell: grid for cell, grid in named.items() if (cell, weight) not in there}
        error = EndError(draw(steps=60), model.shape) if named else None
        for cell, grid in named.items():
            assert error is not None
            try:
                value = error(draw(**grid), slice(0, len(ids)))
            except ValueError as reason:
                tqdm.write(f"{cell}: {reason}")
                continue
            append(RECORDS, {"guided": cell, "weight": weight, "error": value, "date": date.today().isoformat()})


def records() -> list[dict[str, Any]]:
    """Return the records."""
    return [json.loads(line) for line in RECORDS.read_text().splitlines()] if RECORDS.exists() else []


def latest(name: str) -> dict[str, dict[int, float]]:
    """Return a distance by cell and seed, the last one that was measured."""
    found: dict[str, dict[int, float]] = {}
    for r in records():
        if "cell" in r and r["num"] == NUM:
            found.setdefault(r["cell"], {})[r["seed"]] = r[name]
    return found


def rows(budget: int) -> Iterator[str]:
    """Yield the lines of the table of a budget."""
    fid, sw2 = latest("fid"), latest("sw2")
    right = fid.get("40 steps", {})
    for cell in (k for k in fid if k == "40 steps" or k.endswith(f", {budget}")):
        seeds = sorted(fid[cell].keys() & right.keys())
        if not seeds:
            continue
        values = np.array([fid[cell][s] for s in seeds])
        excess = values - np.array([right[s] for s in seeds])
        second = np.array([sw2[cell][s] for s in seeds])
        spread = f"{np.ptp(excess):.4f}" if len(seeds) > 1 else ""
        yield (
            f"| {cell} | {values.mean():.4f} | {excess.mean():.4f} | {spread} | {second.mean():.5f} | {len(seeds)} |"
        )


def report() -> None:
    """Write the tables."""
    parts = [
        f"Classifier-FID of {NUM} samples of `{MODEL}` against the test images, its excess over that of 40 steps of "
        "DPM++ 2M from the same noise, the range of that excess over seeds, and the sliced W2 distance of pixels "
        "(0 .. 1) to as many test images. Generated by `python -m bench.studies.tuned_grids report`."
    ]
    for n in BUDGETS:
        head = [
            "| grid, evaluations | FID | excess | range | sliced W2 | seeds |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        parts.append("\n".join([f"## {n} evaluations", "", *head, *rows(n)]))
    fits = read(TABLE) if TABLE.exists() else []
    for one in sorted(fits, key=lambda one: one.steps):
        knots = " ".join(f"{level:.4g}" for level in one.levels)
        table = [f"| {t.grid} | `{t.solver}` | {t.fit:.4f} | {t.held_out:.4f} |" for t in one.tried]
        parts.append("\n".join([
            f"## The fit of {one.steps}", "",
            f"`{one.solver}` at sigma / alpha = {knots}; {one.cost:,} evaluations of the network, {one.seconds:.0f} s, "
            f"{one.ids} ids, {one.held_out} held out, seed {one.seed}.", "",
            "| grid | solver | error, fit | error, held out |", "| --- | --- | --- | --- |", *table,
        ]))  # fmt: skip
    with_guidance = {(r["guided"], r["weight"]): r["error"] for r in records() if "guided" in r}
    if with_guidance:
        head = ["| grid | weight | error at the end |", "| --- | --- | --- |"]
        lines = [f"| {cell} | {weight} | {error:.4f} |" for (cell, weight), error in with_guidance.items()]
        parts.append("\n".join(["## Fitted without guidance, sampled with it", "", *head, *lines]))
    print(publish("tuned_grids", "Fitted grids", "\n\n".join(parts)))


def main() -> None:
    """Run a part of the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("fit", "measure", "guided", "report"))
    parser.add_argument("--network", default="auto", help="see Execution [auto]")
    parser.add_argument("--seed", type=int, help="of the measurement, to run several at once [all]")
    parser.add_argument("--only", default="", help="measure cells with this in their names [all]")
    args = parser.parse_args()
    if args.part == "report":
        report()
    else:
        which: dict[str, Any] = {}
        if args.part == "measure":
            which = {"seeds": SEEDS if args.seed is None else [args.seed], "only": args.only}
        {"fit": fit, "measure": measure, "guided": guided}[args.part](args.network, **which)


if __name__ == "__main__":
    main()
