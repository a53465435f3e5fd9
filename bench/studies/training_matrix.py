"""Does every schedule and prediction that can be trained train as well as the best?

    python -m bench.studies.training_matrix                   # points: MLP, two sets, all pairs
    python -m bench.studies.training_matrix --part images     # U-Net on images of 8 x 8
    python -m bench.studies.training_matrix --match ddpm/eps  # only these
    python -m bench.studies.training_matrix --all             # train what is the same to the bit, too
    python -m bench.studies.training_matrix --quick           # few examples, nothing recorded
    python -m bench.studies.training_matrix --table           # only write the table of the records

Each pair is trained by `fastscore train` and sampled by `Sampler` with their defaults: 150,000 examples, then
DPM-Solver++(2M) in 30 steps and Euler-Maruyama in 300 (a table of fewer levels also between them, by fs.karras). A
sample's distance is that to the nearest mode, arc or template, its class which one that is. A pair passes if with both
solvers the mean distance is within 25 % of the best pair's (the one nearest to the data's own) and every class share
within 3 points of the data's.

A row is recorded as soon as it is made, and a run goes on where the last one stopped; pairs of which a solver failed
are tried again. By default a network of unit scaling is asked for the same whatever the prediction is called, so that a
pair is not trained again if its coefficients equal those of another prediction on the same schedule, to the bit; the
row says of which. tests/training/test_exact.py compares the weights, and --all trains every pair.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stdout
from functools import lru_cache
from io import StringIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fastscore as fs
from bench.records import RESULTS, SCHEMA, append, environment, load, publish
from bench.report import headline
from fastscore.cli import main as command
from fastscore.data.toys import toy
from fastscore.process.names import SCHEDULES
from fastscore.process.parametrization import PREDICTIONS
from fastscore.training.losses import default_weighting, weights

RECORDS = RESULTS / "training_matrix.jsonl"
SOLVERS = {"dpmpp-2m": 30, "em": 300}
SETS = {"points": ("four", "moons"), "images": ("blocks",)}
NET = {"points": [], "images": ["--width", "24", "--patch", "1"]}
SAMPLES = {"points": 8192, "images": 4096}
BATCH = {"points": 4096, "images": 256}
DISTANCE, SHARE = 0.25, 0.03
LEVEL, GREY = 0.6, 0.15  # of a template's pixels, and of their noise, in the range -1 .. 1


def templates() -> np.ndarray:
    """Return the four images of 8 x 8 of which one half is bright, [4, 64]."""
    half = np.where(np.arange(8) < 4, LEVEL, -LEVEL)
    rows = np.repeat(half[:, None], 8, 1)
    return np.stack([rows, -rows, rows.T, -rows.T]).reshape(4, 64)


def examples(name: str, n: int, seed: int) -> np.ndarray:
    """Draw a set: four Gaussians at (+-2, +-2) of std 0.5, moons, or noisy templates as bytes."""
    rng = np.random.default_rng(seed)
    if name == "four":
        return (rng.choice([-2.0, 2.0], (n, 2)) + 0.5 * rng.standard_normal((n, 2))).astype(np.float32)
    if name == "moons":
        return toy("moons", n, seed)
    x = templates()[rng.integers(0, 4, n)] + GREY * rng.standard_normal((n, 64))
    return np.clip(np.floor(127.5 * x + 128.0), 0, 255).astype(np.uint8).reshape(n, 8, 8, 1)


def judge(name: str, x: np.ndarray) -> tuple[float, list[float]]:
    """Return the mean distance of samples, as a network makes them, and the shares of the classes."""
    x = x.reshape(len(x), -1).astype(np.float64)
    if name == "four":
        gaps = np.stack([np.abs(x - mode).mean(1) for mode in ((-2, -2), (-2, 2), (2, -2), (2, 2))])
    elif name == "moons":
        angle = np.linspace(0.0, np.pi, 500)
        upper = np.stack([np.cos(angle), np.sin(angle)], 1)
        arcs = (upper - [0.5, 0.25], [1.0, 0.5] - upper - [0.5, 0.25])
        gaps = np.stack([np.linalg.norm(x[:, None] - arc, axis=2).min(1) for arc in arcs])
    else:
        gaps = np.stack([np.sqrt(np.square(x - template).mean(1)) for template in templates()])
    shares = np.bincount(gaps.argmin(0), minlength=len(gaps)) / len(x)
    return float(gaps.min(0).mean()), shares.tolist()


def problem(model: fs.ScoreModel) -> str:
    """Return a digest of all by which schedule and prediction enter a training run: coefficients and weights."""
    schedule, p = model.schedule, model.parametrization
    times = np.linspace(schedule.T, schedule.t_end, 257)
    weight = weights(default_weighting(p), schedule, p, times)
    columns = (schedule.alpha(times), schedule.sigma(times), p.c_in(schedule, times), p.c_noise(schedule, times))
    rest = (*p.components(schedule, times), weight, np.full_like(times, p.sigma_data))
    return hashlib.sha256(np.stack([times, *columns, *rest]).tobytes()).hexdigest()[:16]


def trained(data: Path, out: Path, row: dict[str, Any], images: int) -> fs.ScoreModel:
    """Run `fastscore train` on ``images`` examples; return the model."""
    arguments = ["train", str(data), "--out", str(out), "--images", str(images), "--schedule", row["schedule"]]
    arguments += ["--prediction", row["prediction"], "--no-compile", "--quiet", *NET[row["part"]]]
    try:
        with redirect_stdout(StringIO()):
            command(arguments)
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"fastscore train ended with {end.code}") from None
    return fs.load_model(out)


def measure(part: str, name: str, schedule: str, prediction: str, images: int, every: bool = False) -> dict[str, Any]:
    """Train one pair and sample it; return its row.

    Args:
        every: train also what another prediction has trained, to the bit.
    """
    torch.set_num_threads(1)
    row: dict[str, Any] = {"part": part, "set": name, "schedule": schedule, "prediction": prediction, "images": images}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.npy"
        np.save(data, examples(name, 100_000, 0))
        row["problem"] = problem(trained(data, Path(folder) / "first", row, 1))
        for known in [] if every else latest(load(RECORDS) if RECORDS.exists() else []):
            same = all(known.get(k) == row[k] for k in ("set", "schedule", "images", "problem"))
            if same and not failed(known):
                return row | {"same_as": known.get("same_as", known["prediction"])} | {s: known[s] for s in SOLVERS}
        start = time.perf_counter()
        model = trained(data, Path(folder) / "model", row, images)
        row["train_s"] = round(time.perf_counter() - start, 1)
    count = SAMPLES[part]
    for solver, steps in SOLVERS.items():
        start = time.perf_counter()
        short = isinstance(model.schedule, fs.DiscreteVE) and steps > len(model.schedule.sigmas)
        grid = {"grid": fs.karras(steps)} if short else {"steps": steps}
        try:
            x = fs.Sampler(model, solver=solver, batch=BATCH[part], **grid).run(range(count), 1)
        except ValueError as error:
            row[solver] = {"error": str(error)}
            continue
        distance, shares = judge(name, x.numpy())
        row[solver] = {"distance": distance, "shares": shares, "s": round(time.perf_counter() - start, 1)}
    return row


def latest(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the last row of each pair."""
    return list({(r["set"], r["schedule"], r["prediction"]): r for r in records}.values())


def failed(row: dict[str, Any]) -> bool:
    """Return whether a solver could not sample a pair."""
    return any("distance" not in row.get(solver, {}) for solver in SOLVERS)


@lru_cache
def exact(name: str) -> tuple[float, list[float]]:
    """Return what the data themselves have."""
    x = examples(name, 100_000, 0)
    return judge(name, x / 127.5 - 1.0 if x.dtype == np.uint8 else x)


def verdicts(rows: list[dict[str, Any]], name: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Return of each pair on a set its distances, their ratio to the best, the largest gap of a share, a verdict."""
    distance, shares = exact(name)
    rows = [row for row in latest(rows) if row["set"] == name]
    best = {}
    for solver in SOLVERS:
        found = [row[solver]["distance"] for row in rows if "distance" in row.get(solver, {})]
        best[solver] = min(found, key=lambda d: abs(d - distance), default=distance)
    result = {}
    for row in rows:
        drawn = {s: row.get(s, {}) for s in SOLVERS}
        if any("distance" not in v for v in drawn.values()):
            reason = row.get("error") or next(v["error"] for v in drawn.values() if "error" in v)
            result[row["schedule"], row["prediction"]] = {"error": reason, "passes": False}
            continue
        ratio = max((v["distance"] / best[s] for s, v in drawn.items()), key=lambda r: abs(r - 1.0))
        gap = max(float(np.abs(np.array(v["shares"]) - shares).max()) for v in drawn.values())
        passes = abs(ratio - 1.0) <= DISTANCE and gap <= SHARE
        result[row["schedule"], row["prediction"]] = {
            "distances": [v["distance"] for v in drawn.values()], "ratio": ratio, "gap": gap, "passes": passes,
        }  # fmt: skip
    return result


def table(records: list[dict[str, Any]]) -> str:
    """Return the tables of all sets."""
    blocks = []
    for part, names in SETS.items():
        for name in names:
            judged = verdicts(records, name)
            if not judged:
                continue
            env = next(row["env"] for row in reversed(records) if row["set"] == name)
            images = {row["images"] for row in records if row["set"] == name}
            good = sum(v["passes"] for v in judged.values())
            blocks += [
                f"## {name}",
                "",
                f"{good} of {len(judged)} pairs pass, of {len(SCHEDULES) * len(PREDICTIONS)} there are; "
                f"{sum('same_as' in r for r in latest(records) if r['set'] == name)} of them have the coefficients of "
                "another prediction on their schedule, to the bit, and stand for the same run. "
                f"{' and '.join(f'{k:,}' for k in images)} examples; the data's own distance is {exact(name)[0]:.4f}. "
                f"{SAMPLES[part]:,} samples. {headline(env)}.",
                "",
                "| schedule | prediction | distance, 2M 30 | distance, EM 300 | of the best pair's | share off by | |",
                "| --- | --- | --- | --- | --- | --- | --- |",
            ]
            for schedule, prediction in [(s, p) for s in SCHEDULES for p in PREDICTIONS if (s, p) in judged]:
                v = judged[schedule, prediction]
                if "error" in v:
                    blocks.append(f"| {schedule} | {prediction} | {v['error'][:80]} | | | | no |")
                    continue
                first, second = v["distances"]
                blocks.append(
                    f"| {schedule} | {prediction} | {first:.4f} | {second:.4f} | {v['ratio']:.2f} | {v['gap']:.3f} | "
                    f"{'yes' if v['passes'] else 'no'} |"
                )
            blocks.append("")
    return "\n".join([__doc__.split("\n\n")[2], "", *blocks]).rstrip()


def main(arguments: list[str] | None = None) -> int:
    """Run the study; return the exit code: 1 if a pair does not pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=tuple(SETS), default="points")
    parser.add_argument("--match", default="", help="only pairs whose set/schedule/prediction contains this")
    parser.add_argument("--images", type=int, default=150_000, help="examples seen")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--all", action="store_true", help="train also what is the same to the bit")
    parser.add_argument("--quick", action="store_true", help="see that it works; figures mean nothing")
    parser.add_argument("--table", action="store_true", help="only write the table of the records")
    args = parser.parse_args(arguments)
    if args.images < 1 or args.processes < 1:
        parser.error("--images and --processes must be at least 1")
    records = load(RECORDS) if RECORDS.exists() else []
    done = {(r["set"], r["schedule"], r["prediction"]) for r in latest(records) if not failed(r)}
    pairs = [(name, s, p) for p in PREDICTIONS for name in SETS[args.part] for s in SCHEDULES]
    pairs = [pair for pair in pairs if args.match in "/".join(pair) and (args.quick or pair not in done)]
    if args.table:
        pairs = []
    env = environment(torch.device("cpu"))
    images = 2000 if args.quick else args.images
    with ProcessPoolExecutor(args.processes, get_context("spawn")) as pool:
        jobs = [pool.submit(measure, args.part, *pair, images, args.all) for pair in pairs[: 2 if args.quick else None]]
        for job in as_completed(jobs):
            row = {"schema": SCHEMA, "bench": "training-matrix", "env": env} | job.result()
            records.append(row)
            if not args.quick:
                append(RECORDS, row)
            print(
                row["set"],
                row["schedule"],
                row["prediction"],
                row.get("error", ""),
                *(row.get(s) for s in SOLVERS),
                flush=True,
            )
    text = table(records)
    print(text)
    if args.quick:
        return 0
    publish("training_matrix", "Training: every schedule and prediction", text)
    return 0 if all(v["passes"] for names in SETS.values() for n in names for v in verdicts(records, n).values()) else 1


if __name__ == "__main__":
    sys.exit(main())
