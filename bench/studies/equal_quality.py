"""Samples a second at equal quality, against Song's PC with 1,000 steps (2,000 evaluations).

    python -m bench.studies.equal_quality            # appends bench/results/equal-quality.jsonl, writes its .md
    python -m bench.studies.equal_quality --quick    # few samples and steps, nothing recorded

On a two-dimensional mixture with its exact score. Error is the sliced Wasserstein-2 distance to as many exact
samples; "floor" is that between exact sets, which both sides have on top of their own error. Of fastscore the
first number of evaluations counts whose error is at most PC's plus two standard deviations of the floor: below
that the two cannot be told apart with so many samples. PC is the eager loop of bench/peers/score_sde.py. Both sides are
timed in the same rounds; PC over a twentieth of its steps, times twenty: every step costs the same.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from typing import Any

import torch
from torch import Tensor

import fastscore as fs
from bench import common
from bench.peers import score_sde
from bench.peers.cases import peer_run
from bench.peers.models import SEED, mixture_model
from bench.records import RESULTS, SCHEMA, append, environment, load, publish
from bench.report import headline
from fastscore.model.analytic import mixture, score_model
from fastscore.ops.noise import NoiseKey

RECORDS = RESULTS / "equal-quality.jsonl"
NFE = (5, 8, 10, 15, 20, 30, 50, 100)
DIRECTIONS = 64


def sliced(a: Tensor, b: Tensor) -> float:
    """Return the sliced Wasserstein-2 distance of two equal numbers of points in the plane."""
    angle = torch.arange(DIRECTIONS) * (math.pi / DIRECTIONS)
    directions = torch.stack([angle.cos(), angle.sin()])
    gaps = (a @ directions).sort(0).values - (b @ directions).sort(0).values
    return float(gaps.square().mean().sqrt())


def target(n: int, seed: int) -> Tensor:
    """Return exact samples of the mixture."""
    key = NoiseKey.of(seed, range(n))
    return mixture().sample(key.normal(0, 2), key.uniform(1, 1)[:, 0])


def study(n: int, steps: int) -> dict[str, Any]:
    """Return errors, and rates at equal error."""
    (entry,) = score_sde.entries(2 * steps)
    model, like, exact = mixture_model(entry.predicts), torch.empty(n, 2), target(n, 1)
    torch.manual_seed(SEED)
    with torch.no_grad():
        pc = sliced(entry.run(model, torch.randn(n, 2), None), exact)
    floors = [sliced(target(n, 2 + k), exact) for k in range(16)]
    bound = pc + 2.0 * statistics.stdev(floors)
    errors, chosen = {}, None
    for nfe in NFE:
        solver = fs.Sampler(
            score_model(mixture()), schedule=fs.EDM(0.01, 50.0), grid=fs.karras(nfe), batch=min(n, 8192)
        )
        errors[nfe] = sliced(solver.run(range(n), SEED), exact)
        if errors[nfe] <= bound:
            chosen = solver
            break
    run = {"n": n, "pc_steps": steps, "floor": statistics.mean(floors), "pc_error": pc, "bound": bound}
    run["errors"] = errors
    if chosen is None:
        return run
    timed = max(2, steps // 20)
    (part,) = score_sde.entries(2 * timed)
    variants = {"fastscore": lambda: chosen.run(range(n), SEED), "PC": peer_run(part, model, like)}
    seconds = common.paired(variants, common.HostClock(), 5, 0.0)
    seconds["PC"] = [value * steps / timed for value in seconds["PC"]]
    ratios = [b / a for a, b in zip(seconds["fastscore"], seconds["PC"], strict=True)]
    return run | {
        "nfe": chosen.plan.nfe,
        "samples_per_s": {name: n / common.spread(values)["p50"] for name, values in seconds.items()},
        "ratio": common.spread(ratios),
    }


def table(run: dict[str, Any]) -> str:
    """Return the table of one run."""
    lines = [
        f"{run['n']:,} points of the mixture, exact score, sliced Wasserstein-2 (floor {run['floor']:.4f}, equal up to "
        f"{run['bound']:.4f}). "
        f"{headline(run['env'])}.",
        "",
        "| sampler | evaluations | error | samples/s |",
        "| --- | --- | --- | --- |",
    ]
    rates = run.get("samples_per_s", {})
    rate = f"{rates['PC']:.3g}" if rates else "not timed"
    lines.append(
        f"| PC, {run['pc_steps']} steps, eager loop | {2 * run['pc_steps']} | {run['pc_error']:.4f} | {rate} |"
    )
    for nfe, error in run["errors"].items():
        rate = f"{rates['fastscore']:.3g}" if rates and int(nfe) == run["nfe"] else ""
        lines.append(f"| fastscore, DPM-Solver++(2M) | {nfe} | {error:.4f} | {rate} |")
    if rates:
        r = run["ratio"]
        lines += [
            "",
            f"At equal quality **{r['p50']:.0f} times** ({r['p20']:.0f} .. {r['p80']:.0f}) the samples a second.",
        ]
    else:
        lines += ["", f"No number of evaluations up to {NFE[-1]} reached the error of PC: no ratio."]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the study; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=10_000, help="samples of each")
    parser.add_argument("--quick", action="store_true", help="see that it works; figures mean nothing")
    parser.add_argument("--table", action="store_true", help="only write the table of the last record")
    args = parser.parse_args(arguments)
    if args.table:
        publish("equal-quality", "Equal quality", table(load(RECORDS)[-1]))
        return 0
    if args.num < 2:
        parser.error(f"--num = {args.num} must be at least 2")
    env = environment(torch.device("cpu"))
    run = {"schema": SCHEMA, "bench": "equal-quality", "env": env}
    run |= study(500, 20) if args.quick else study(args.num, 1000)
    print(table(run))
    if not args.quick:
        append(RECORDS, run)
        publish("equal-quality", "Equal quality", table(run))
    return 0


if __name__ == "__main__":
    sys.exit(main())
