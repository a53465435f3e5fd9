"""The first act: points carried back from noise, by four solvers, and how far from the truth they come out."""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from torch import Tensor

from fastscore.cli.demo.act import SEED, Act, Say, beside, cloud, png
from fastscore.engine.trajectory import trajectory
from fastscore.errors import SelfCheckError
from fastscore.model.analytic import GaussianMixture, mixture, score_model
from fastscore.ops.noise import NoiseKey
from fastscore.process.continuous import VP
from fastscore.report.page import Chart, Frames, Picture, Section, Table
from fastscore.report.quality import energy_distance, sliced_wasserstein
from fastscore.sampler import Sampler
from fastscore.solvers import AnnealedLangevin, Dopri5, EulerMaruyama, PredictorCorrector, ReverseDiffusion

REACH = 3.0
FLOOR = "exact samples, the floor"
EM, PC, ODE, DPM = "Euler-Maruyama", "predictor-corrector", "probability-flow ODE (dopri5)", "DPM-Solver++ 2M"
STEPS, TOLERANCES = (8, 16, 32, 64, 128, 256), (1e-1, 1e-2, 1e-3, 1e-4)
MOST = 2000  # points of an energy distance, which takes the square of them
NEAR, WIDE = 1.5, 0.05  # times the floor, and off the width: a solver that comes so near gets no more evaluations
TEXT = """
Take data, here points in eight clusters, and add noise until nothing of them is left: that is the forward process,
and it is easy. Going back needs one thing, the score: the direction in which the noisy data become more probable.
A network learns it from examples (here it is known exactly); a solver follows it, from fresh noise to new samples.

Solvers differ in how they step. Euler-Maruyama follows the reverse SDE with many small random steps; a
predictor-corrector shakes every step towards the right distribution; the probability-flow ODE has no randomness but its
start, and chooses its own steps; DPM-Solver++ solves what is linear exactly, and needs the fewest. What costs time is
evaluating the network, so that is what is counted.
"""


def exact(target: GaussianMixture, n: int, seed: int) -> Tensor:
    """Draw from the mixture itself, [n, 2]."""
    key = NoiseKey.of(seed, range(n))
    return target.sample(key.normal(0, 2), key.uniform(1, 1)[:, 0])


def width(x: Tensor, target: GaussianMixture) -> float:
    """Return the standard deviation of points [N, 2] around the nearest mean, over that of the clusters."""
    nearest = torch.cdist(x.double(), target.means).min(1).values
    return float(nearest.square().mean().sqrt()) / (math.sqrt(2.0) * float(target.stds[0]))


def sampler_of(name: str, setting: float) -> Sampler:
    """Return a solver with so many evaluations, or of the ODE with such a tolerance, on the mixture."""
    model, steps = score_model(mixture()), int(setting)
    if name == ODE:
        return Sampler(model, schedule=VP(), solver=Dopri5(setting, setting), batch=2000)
    if name == PC:
        corrected = PredictorCorrector(ReverseDiffusion(), AnnealedLangevin(0.16))
        return Sampler(model, schedule=VP(), solver=corrected, steps=steps // 2, batch=2000)
    return Sampler(model, schedule=VP(), solver=EulerMaruyama() if name == EM else None, steps=steps, batch=2000)


def act(quick: bool, say: Say) -> Act:
    """Carry points back by four solvers; draw, measure and tell."""
    n = 1000 if quick else 4000
    target = mixture()
    truth = exact(target, n, 1)
    others = [exact(target, n, seed) for seed in range(2, 10)]
    floors = {
        "sliced_wasserstein": float(np.mean([sliced_wasserstein(truth, other) for other in others])),
        "energy": energy_distance(truth[:MOST], others[0][:MOST]),
        "off_width": float(np.mean([abs(width(other, target) - 1.0) for other in others])),
    }
    rows, far, off, panels, figures = [], {}, {}, [cloud(truth.numpy(), 1.6)], {}
    for name in (EM, PC, ODE, DPM):
        curve, x, cost, distance, wide = [], truth, 0.0, 0.0, 0.0
        for setting in TOLERANCES if name == ODE else STEPS[:: 2 if quick else 1]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # that few steps lose much, which is what is shown
                sampler = sampler_of(name, setting)
            x = sampler.run(range(n), SEED)
            cost = float(sampler.plan.nfe) if sampler.plan else float(sampler.cost.nfe.double().mean())
            distance, wide = sliced_wasserstein(x, truth), width(x, target)
            curve.append((cost, distance, abs(wide - 1.0)))
            if distance < NEAR * floors["sliced_wasserstein"] and abs(wide - 1.0) < WIDE:
                break
        costs, distances, widths = np.array(curve).T.tolist()
        far[name], off[name] = (costs, distances), (costs, widths)
        near = energy_distance(x[:MOST], truth[:MOST])
        rows.append([name, round(cost, 1), distance, near, wide])
        panels.append(cloud(x.numpy(), 1.6))
        measured = {"sliced_wasserstein": distance, "energy": near, "width": wide}
        figures[name] = {"evaluations": round(cost, 2), **measured}
        say(f"{name:<29} {cost:>4.0f} evaluations: {distance:.3f} from exact samples, clusters x {wide:.2f} as wide")
    floor = floors["sliced_wasserstein"]
    say(f"{'exact samples among themselves':<30} {'':>17}{floor:.3f} on average: the floor, below it is chance")
    rows.append([FLOOR, 0, floor, floors["energy"], width(truth, target)])
    span = [min(min(x) for x, _ in far.values()), max(max(x) for x, _ in far.values())]
    far[FLOOR], off[FLOOR] = (span, [floor] * 2), (span, [floors["off_width"]] * 2)
    alone, together = sampler_of(EM, 64).run([17], SEED), sampler_of(EM, 64).run(range(64), SEED)[17:18]
    same = alone.equal(together)
    say(f"sample 17 drawn alone, and among 64 others: {'the same to the last bit' if same else 'not the same'}")
    if not same:
        raise SelfCheckError("a sample drawn alone has other bits than among others; see `fastscore doctor`")
    figures |= {"floor": floors, "alone_is_the_same": same}
    names = f"from the left: exact samples, {EM}, {PC}, {ODE}, {DPM}"
    parts = [
        _frames(n),
        Chart(
            off,
            "network evaluations a sample",
            "width of the clusters, relative error",
            log_x=True,
            log_y=True,
            text="How wrong the clusters are in width, over what the samples cost. Each line ends at the first that "
            f"are right within {WIDE:.0%} and whose distance is within {NEAR} of the floor.",
        ),
        Chart(
            far,
            "network evaluations a sample",
            "sliced Wasserstein-2 distance",
            log_x=True,
            log_y=True,
            text="Distance to exact samples. It is mostly how many points each cluster got, and near the floor chance.",
        ),
        Table(
            ["solver", "evaluations", "sliced Wasserstein", "energy distance", "width of clusters, relative"],
            rows,
            f"{n} points each, where the lines of the chart end. An energy distance as of exact samples is chance.",
        ),
        Picture(png(beside(panels)), f"Where the points end, {names}."),
    ]
    return Act(Section("Points: from noise to data", TEXT, parts), figures)


def _frames(n: int) -> Frames:
    """Return the way of the points, and of what is expected of each, as frames."""
    path = trajectory(sampler_of(DPM, 20), range(n), SEED)
    assert path.x0 is not None
    pngs, labels = [], []
    for k in range(0, len(path.x0), 2):
        x, x0 = path.states[k].numpy(), path.x0[k].numpy()
        pngs.append(png(beside([cloud(x, REACH), cloud(x0, REACH)])))
        labels.append(f"t = {float(path.times[k]):.3f}")
    last = cloud(path.states[-1].numpy(), REACH)
    pngs.append(png(beside([last, last])))
    labels.append("the samples")
    text = "The points on their way (left), and the clean point that the score expects of each (right)."
    return Frames(pngs, labels, text)
