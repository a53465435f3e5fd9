"""Steps of the adaptive engine against an oracle in NumPy: as many, as many rejected, and the same end.

The oracle's numbers are written down here. Each of them is also changed, and the oracle then no longer agrees: so a
change of one in the engine, or of a default, cannot go unnoticed.
"""

from __future__ import annotations

import math
from dataclasses import replace

import adaptive as oracle
import numpy as np
import pytest
import torch
from adaptive import Settings

from fastscore.model import analytic
from fastscore.ops.noise import NoiseKey
from fastscore.process.continuous import EDM
from fastscore.process.grid import Span
from fastscore.sampler import Sampler
from fastscore.solvers import BogackiShampine, Dopri5, DPMAdaptive, GottaGoFast
from fastscore.solvers.adaptive import K_DIFFUSION, PI, Control

D, SEED = 3, 4
MODEL = analytic.score_model(
    analytic.GaussianMixture(*(torch.from_numpy(v) for v in (oracle.WEIGHTS, oracle.MEANS, oracle.STDS)))
)
CASES = {
    # Defaults, which the numbers of the oracle fix.
    "dopri5": ("dopri5", Dopri5(), Settings()),
    "bs32": ("bs32", BogackiShampine(), Settings(rtol=1e-3, atol=1e-3, order=3.0)),
    "dpm23": ("dpm23", DPMAdaptive(), Settings(rtol=0.05, atol=0.0078, order=3.0, longest=1.25)),
    "dpm12": ("dpm12", DPMAdaptive(2), Settings(rtol=0.05, atol=0.0078, order=2.0, longest=1.25)),
    "ggf": ("ggf", GottaGoFast(), Settings(rtol=0.02, atol=0.0078, order=1.0, i=0.5, p=0.0)),
    # Steps that grow and shrink as fast as they may, and every term of the controller.
    "limits": (
        "dpm12",
        DPMAdaptive(2, 1e-3, 1e-3, first=6.0, control=PI),
        Settings(1e-3, 1e-3, 6.0, 2.0),
    ),
    "pid": (
        "dpm23",
        DPMAdaptive(3, 1e-3, 1e-3, first=1e-4, control=Control(i=0.5, p=0.2, d=0.1, safety=0.8, low=0.3, high=3.0)),
        Settings(1e-3, 1e-3, 1e-4, 3.0, i=0.5, p=0.2, d=0.1, safety=0.8, low=0.3, high=3.0),
    ),
    "k-diffusion": (
        "dpm23",
        DPMAdaptive(3, norm="batch", control=K_DIFFUSION),
        Settings(0.05, 0.0078, order=3.0, i=1.0, p=0.0, safety=1.0, smooth=True, together=True),
    ),
}
CHANGES = {
    "rtol doubled": lambda s: replace(s, rtol=2.0 * s.rtol),
    "rtol halved": lambda s: replace(s, rtol=0.5 * s.rtol),
    "atol doubled": lambda s: replace(s, atol=2.0 * s.atol),
    "atol halved": lambda s: replace(s, atol=0.5 * s.atol),
    "safety": lambda s: replace(s, safety=s.safety - 0.02),
    "first step": lambda s: replace(s, first=1.1 * s.first),
    "order": lambda s: replace(s, order=s.order + 1.0),
    "norm": lambda s: replace(s, largest=True),
    "i": lambda s: replace(s, i=s.i + 0.05),
    "p": lambda s: replace(s, p=s.p + 0.05),
    "d": lambda s: replace(s, d=s.d + 0.05),
}
LIMITS = {
    "low": lambda s: replace(s, low=s.low + 0.05),
    "lower": lambda s: replace(s, low=s.low - 0.05),
    "high": lambda s: replace(s, high=s.high - 0.3),
    "longest": lambda s: replace(s, longest=s.longest + 0.1),
    "threshold": lambda s: replace(s, accepted_below=1.1),
}


def ratios(name: str) -> tuple[float, float]:
    """Return sigma / alpha at start and end: a short way for the solver that takes small steps."""
    return (1.5, 0.5) if name == "ggf" else (40.0, 0.05)


def count(name: str) -> int:
    """Return how many samples: the paths of the stochastic solver are slow to make in float64."""
    return 2 if name == "ggf" else 4


def ends(name: str) -> tuple[float, float]:
    """Return the same on the solver's clock."""
    top, low = ratios(name)
    return (math.atan(top), math.atan(low)) if name in ("dopri5", "bs32") else (-math.log(top), -math.log(low))


def expected(name: str, s: Settings) -> tuple[np.ndarray, list[int], list[int]]:
    """Return x of EDM at the end, steps and rejections of each sample, by the oracle."""
    (start, end), n = ends(name), count(name)
    z = NoiseKey.of(SEED, range(n)).normal(0, D).double().numpy()
    # The prior of EDM is sigma_max z, of length hypot(1, 80).
    y = z * 80.0 / math.hypot(1.0, 80.0)
    scale = math.hypot(1.0, ratios(name)[1])
    if s.together:
        y, tried, rejected = oracle.integrate(name, y, start, end, s)
        return y * scale, [tried] * n, [rejected] * n
    parts = []
    for k in range(n):
        path = oracle.Brownian(end - start, SEED, k, D) if name == "ggf" else None
        parts.append(oracle.integrate(name, y[k : k + 1], start, end, s, path))
    return np.concatenate([y for y, _, _ in parts]) * scale, [n for _, n, _ in parts], [n for _, _, n in parts]


def found(name: str, solver: object) -> tuple[np.ndarray, list[int], list[int]]:
    span = Span(*ratios(name), clean=False)
    n = count(name)
    # Lanes that are refilled, but for the solver whose samples share their steps.
    batch = n if solver.norm == "batch" else n // 2
    s = Sampler(MODEL, schedule=EDM(), solver=solver, grid=span, dtype=torch.float64, batch=batch)
    x = s.run(range(n), SEED).numpy()
    return x, s.cost.steps.tolist(), s.cost.rejected.tolist()


def agree(a: tuple, b: tuple) -> bool:
    return a[1:] == b[1:] and bool(np.allclose(a[0], b[0], rtol=1e-6, atol=1e-8))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_step_is_the_oracles(case):
    name, solver, settings = CASES[case]
    engine, ours = found(name, solver), expected(name, settings)
    assert engine[1:] == ours[1:]
    np.testing.assert_allclose(engine[0], ours[0], rtol=1e-6, atol=1e-8)
    assert agree(engine, ours)
    assert sum(engine[2]) > 0  # rejections are among them
    for change, apply in CHANGES.items():
        if settings.smooth and change == "d":
            continue
        assert not agree(engine, expected(name, apply(settings))), change


def test_the_limits_of_a_step_and_the_threshold_are_the_oracles():
    """Where they matter: at a first step far too long, or too short, and where steps are rejected."""
    limits = {"limits": ("low", "lower", "threshold"), "pid": ("high",), "dpm23": ("longest",), "dpm12": ("longest",)}
    for case, changes in limits.items():
        name, solver, settings = CASES[case]
        engine = found(name, solver)
        for change in changes:
            assert not agree(engine, expected(name, LIMITS[change](settings))), change


def test_a_first_step_that_was_rejected_is_what_the_next_remembers():
    """Of this sample, and not of whoever was in its lane before."""
    solver = DPMAdaptive(2, 1e-3, 1e-3, first=6.0, control=PI)
    alone, refilled = (
        Sampler(MODEL, schedule=EDM(), solver=solver, batch=batch, dtype=torch.float64) for batch in (8, 2)
    )
    expected = alone.run(range(8), SEED)
    assert sum(alone.cost.rejected.tolist()) > 0
    torch.testing.assert_close(refilled.run(range(8), SEED), expected, rtol=1e-9, atol=1e-9)
    assert refilled.cost.steps.tolist() == alone.cost.steps.tolist()
