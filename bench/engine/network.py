"""What the network path costs in accuracy and gives in speed.

    python -m bench.engine.network              # appends bench/results/network.jsonl, writes network.md
    python -m bench.engine.network --num 0        # without the classifier-FID, which takes an hour on two cores

Accuracy: the relative error of the score at each time of the schedule's default grid, and the classifier-FID of
the same ids and seed in each numerics. Speed: evaluations of one micro-batch, paired; what they make of the
rate that a matrix product of the same precision reaches in the same rounds. A convolution is one, so that
rate is what stands in the way; the rest is norms, activations and layers too small to fill the cores.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from datetime import date
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import fastscore as fs
from bench.common import HostClock, count, paired, spread
from bench.records import RESULTS, append, processor, publish
from fastscore.data.load import load
from fastscore.model.nets import build
from fastscore.network.prepare import Prepared, Trial
from fastscore.ops.quantize import quantize_ref
from fastscore.report.metrics import features, frechet_distance
from fastscore.training.classifier import load_classifier

RECORDS = RESULTS / "network.jsonl"
KINDS = ("own", "fp32", "bf16")
SIDE = 1024  # of the matrices whose product stands for the machine's rate


def models() -> dict[str, fs.ScoreModel]:
    """Return the bundled model and a ScoreNet of random weights."""
    torch.manual_seed(0)
    net = build({"name": "ScoreNet"}).eval()
    random = fs.ScoreModel(net, (1, 28, 28), fs.TutorialVE(), fs.Parametrization("score", "t"))
    return {"fashion": fs.load_model("fashion"), "random ScoreNet": random}


@torch.no_grad()
def measure(name: str, model: fs.ScoreModel, batch: int, repeats: int, clock: HostClock) -> dict[str, Any]:
    """Return errors over t and paired rates of one network in each numerics."""
    nets = {kind: fs.prepare(model, batch, network=kind).net for kind in KINDS}
    unprepared = [kind for kind in KINDS[1:] if not isinstance(nets[kind], Prepared)]
    if unprepared:
        raise SystemExit(f"{name}: {unprepared} could not be prepared; see the warning above")
    trial = Trial(model, model.net, batch, torch.device("cpu"))
    at = trial.columns[:, 0] / trial.columns[:, 1]
    errors = {kind: trial.errors(nets[kind])[1].tolist() for kind in KINDS[1:]}
    u, c_noise, *cond = trial.example
    inputs = (u, c_noise, cond[0] if cond else None)
    with FlopCounterMode(display=False) as counter:
        model.net(*inputs)
    products = {kind: torch.ones(SIDE, SIDE, dtype=dtype) for kind, dtype in PRECISIONS.items()}
    variants: dict[str, Callable[[], object]] = {kind: lambda net=net: net(*inputs) for kind, net in nets.items()}
    variants |= {f"product {kind}": lambda a=a: a @ a for kind, a in products.items()}
    for work in variants.values():
        work()
    rounds = paired(variants, clock, repeats, 0.2)
    flops, product = counter.get_total_flops(), 2 * SIDE**3
    peak = {kind: product / np.median(rounds[f"product {kind}"]) / 1e9 for kind in PRECISIONS}
    rates = {}
    for kind in KINDS:
        seconds = np.array(rounds[kind])
        numerics = "bf16" if kind == "bf16" else "fp32"
        shares = flops / seconds / (product / np.array(rounds[f"product {numerics}"]))
        rates[kind] = {
            "images_per_s": batch / float(np.median(seconds)),
            "over_own": spread((np.array(rounds["own"]) / seconds).tolist()),
            "gflop_per_s": flops / float(np.median(seconds)) / 1e9,
            "share_of_product": spread(shares.tolist()),
        }
    return {
        "network": name,
        "batch": batch,
        "gflop": flops / 1e9,
        "product_gflop_per_s": peak,
        "alpha_over_sigma": at.tolist(),
        "score_error": errors,
        "rates": rates,
    }


PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def quality(model: fs.ScoreModel, num: int, batch: int, steps: int) -> dict[str, Any]:
    """Return the classifier-FID of the same samples in each numerics, and how far their pixels differ."""
    net, _ = load_classifier("fashion-classifier")
    reference, _ = features(net, load("fashion-mnist", "test").x)
    distances, images = {}, {}
    for kind in KINDS:
        sampler = fs.Sampler(model, grid=fs.karras(steps), batch=batch, network=kind)
        parts = [quantize_ref(x) for _, x in sampler.stream(range(num), seed=0, labels="random", progress=True)]
        images[kind] = torch.cat(parts).numpy()
        distances[kind] = frechet_distance(features(net, images[kind])[0], reference)
    off = {kind: np.abs(images[kind].astype(int) - images["own"].astype(int)) for kind in KINDS[1:]}
    return {
        "num": num,
        "steps": steps,
        "classifier-FID": distances,
        "mean_pixel_difference": {kind: float(v.mean()) for kind, v in off.items()},
    }


def table(record: dict[str, Any]) -> str:
    """Return the tables of a record."""
    lines = [
        f"{record['hardware']}, {record['threads']} thread{'s' * (record['threads'] > 1)}, {record['clock']}, "
        f"torch {record['torch']}, {record['date']}; by `python -m bench.engine.network`. Ratios are medians of paired "
        "rounds, with the 20th and 80th percentile.",
        "",
        "| network | numerics | images/s | over eager float32 | GFLOP/s "
        "| of a matrix product's rate | largest score error |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in record["networks"]:
        for kind, rate in row["rates"].items():
            error = f"{max(row['score_error'][kind]):.1e}" if kind in row["score_error"] else "0"
            over, share = rate["over_own"], rate["share_of_product"]
            lines.append(
                f"| {row['network']} | {'eager float32' if kind == 'own' else 'package, ' + kind} "
                f"| {rate['images_per_s']:.0f} | {over['p50']:.2f} ({over['p20']:.2f} to {over['p80']:.2f}) "
                f"| {rate['gflop_per_s']:.0f} | {share['p50']:.0%} | {error} |"
            )
    lines += ["", "| network | sigma/alpha | score error, fp32 | score error, bf16 |", "|---|---|---|---|"]
    for row in record["networks"]:
        at, columns = np.array(row["alpha_over_sigma"]), row["score_error"]
        for k in np.unique(np.linspace(0, len(at) - 1, 7).round().astype(int)):
            cells = " | ".join(f"{columns[kind][k]:.1e}" for kind in KINDS[1:])
            lines.append(f"| {row['network']} | {1.0 / at[k] if at[k] else np.inf:.3g} | {cells} |")
    judged = record.get("quality")
    if judged:
        fid = ", ".join(f"{'eager float32' if k == 'own' else k} {v:.4f}" for k, v in judged["classifier-FID"].items())
        pixels = ", ".join(f"{k} {v:.3f}" for k, v in judged["mean_pixel_difference"].items())
        lines += [
            "",
            f"Classifier-FID of `fashion`, {judged['num']} images of the same ids and seed, {judged['steps']} steps of "
            f"DPM-Solver++(2M): {fid}. Mean difference of a pixel from eager float32, of 255: {pixels}.",
        ]
    return "\n".join(lines)


def main() -> None:
    """Measure, record, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=count, default=10_000, help="images; 0: no FID")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--cpu-time", action="store_true", help="of one thread, on a machine that others use")
    parser.add_argument("--table", action="store_true", help="only write the tables of the last record")
    args = parser.parse_args()
    if args.cpu_time and torch.get_num_threads() != 1:
        parser.error("--cpu-time adds up the threads; set OMP_NUM_THREADS=1")
    clock = HostClock(time.process_time if args.cpu_time else time.perf_counter)
    if not args.table:
        chosen = models()
        record = {
            "date": date.today().isoformat(),
            "hardware": processor(),
            "threads": torch.get_num_threads(),
            "clock": "CPU time" if args.cpu_time else "wall time",
            "torch": torch.__version__,
            "networks": [measure(name, model, args.batch, args.repeats, clock) for name, model in chosen.items()],
        }
        if args.num:
            record["quality"] = quality(chosen["fashion"], args.num, args.batch, args.steps)
        append(RECORDS, record)
    record = json.loads(RECORDS.read_text().splitlines()[-1])
    print(table(record))
    publish("network", "The network path", table(record))


if __name__ == "__main__":
    main()
