"""Quality of the bundled model: classifier-FID against network evaluations, for several solvers.

    python -m bench.studies.quality --num 10k    # appends results/quality.jsonl, writes quality.md and README's table

Every row is drawn from the same seed and ids, so that solvers start from the same noise. The record also
holds samples/s, which stay out of the table: nothing is paired here and the machine may be busy.
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import date

import numpy as np
import torch

import fastscore as fs
from bench.common import count
from bench.records import RESULTS, ROOT, append, between, processor, publish
from fastscore.data.load import load
from fastscore.network.jit import has_compiler
from fastscore.ops.quantize import quantize_ref
from fastscore.report.metrics import features, frechet_distance
from fastscore.training.classifier import load_classifier

RECORDS = RESULTS / "quality.jsonl"

CASES = {
    "DPM-Solver++(2M), 10 steps": (fs.EDM(), fs.DPMpp2M(), fs.karras(10)),
    "DPM-Solver++(2M), 20 steps": (fs.EDM(), fs.DPMpp2M(), fs.karras(20)),
    "Heun, 10 steps": (fs.EDM(), fs.Heun(), fs.karras(10)),
    "DDIM, 20 steps": (fs.EDM(), fs.DDIM(), fs.karras(20)),
    "ancestral, 50 steps": (fs.EDM(), fs.Ancestral(), fs.karras(50)),
    "reverse diffusion + Langevin, VE, 50 steps": (
        fs.VE(0.01, 50.0),
        fs.PredictorCorrector(fs.ReverseDiffusion(), fs.Langevin(snr=0.16)),
        fs.uniform(50, clean=True),
    ),
}


def measure(name: str, num: int, model: fs.ScoreModel, reference: np.ndarray, execution: fs.Execution) -> dict:
    """Draw ``num`` images with one solver and judge them."""
    schedule, solver, grid = CASES[name]
    sampler = fs.Sampler(model, schedule=schedule, solver=solver, grid=grid, execution=execution)
    sampler.run(range(1), labels="random")  # compile outside the clock
    request = sampler.request(range(num), seed=0, labels="random")
    start, parts = time.perf_counter(), []
    for _, x in sampler.stream(request, progress=True):
        parts.append(quantize_ref(x).numpy())
    seconds = time.perf_counter() - start
    net, names = load_classifier("fashion-classifier")
    ours, predicted = features(net, np.concatenate(parts))
    assert request.cond is not None
    share = np.bincount(predicted, minlength=len(names)) / num
    return {
        "solver": name,
        "nfe": sampler.plan.nfe,
        "classifier-FID": round(frechet_distance(ours, reference), 3),
        "label agreement": round(float((predicted == request.cond.numpy()).mean()), 4),
        "predicted classes": {k: round(float(v), 4) for k, v in zip(names, share, strict=True)},
        "samples/s": round(num / seconds, 1),
        "sampler": sampler.record(),
    }


def table(run: dict) -> str:
    """Return the table of one run."""
    lines = [
        f"Classifier-FID of the bundled model, {run['num']} samples against {run['reference']} test images "
        f"(as many training images against them: **{run['floor']}**); one seed. "
        f"{run['hardware']}, {run['threads']} threads, "
        f"torch {run['torch']}, float32, torch.compile {'on' if run['compile'] else 'off'}, {run['date']}; "
        "made by `python -m bench.studies.quality`.",
        "",
        "| solver | evaluations | classifier-FID | right class | class shares |",
        "|---|---|---|---|---|",
    ]
    for row in run["rows"]:
        shares = row["predicted classes"].values()
        classes = f"{row['label agreement']:.1%}", f"{min(shares):.1%} to {max(shares):.1%}"
        cells = (row["solver"], row["nfe"], row["classifier-FID"], *classes)
        lines.append("| " + " | ".join(str(c) for c in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=count, default=10_000, help="samples of each")
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES), help="solvers to run")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--no-table", action="store_true", help="only record, and leave the tables alone")
    parser.add_argument("--table", action="store_true", help="only write the tables, from the last record")
    args = parser.parse_args()
    if args.num < 2:
        parser.error(f"--num = {args.num} must be at least 2")
    if args.table:
        write(json.loads(RECORDS.read_text().splitlines()[-1]))
        return

    model = fs.load_model("fashion")
    compiled = has_compiler() and not args.no_compile
    execution = fs.Execution(batch=args.batch, network="compile" if compiled else "own")
    net, _ = load_classifier("fashion-classifier")
    test = load("fashion-mnist", "test").x
    reference, _ = features(net, test)
    floor = frechet_distance(features(net, load("fashion-mnist").x[: args.num])[0], reference)
    run = {
        "date": date.today().isoformat(),
        "hardware": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "compile": compiled,
        "num": args.num,
        "reference": len(test),
        "floor": round(floor, 3),
        "rows": [measure(name, args.num, model, reference, execution) for name in args.only],
    }
    append(RECORDS, run)
    print(table(run))
    if not args.no_table:
        write(run)


def write(run: dict) -> None:
    """Write the table of a run, also between the README's markers."""
    publish("quality", "Quality of the bundled model", table(run))
    readme = ROOT / "README.md"
    readme.write_text(between(readme.read_text(), "quality", table(run)))


if __name__ == "__main__":
    main()
