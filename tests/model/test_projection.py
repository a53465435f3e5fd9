"""Samples on a subspace: whatever runs a model, its run is the one in the coordinates of the subspace."""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from gated import one_in
from torch import Tensor

import fastscore as fs
from fastscore.chains import level_score
from fastscore.data.affine import Affine
from fastscore.engine.capture import Graphed, Tape
from fastscore.engine.loop import Loop
from fastscore.model.coordinates import Diagonal
from fastscore.model.projection import Projection
from fastscore.ops.backend import REFERENCE
from fastscore.ops.noise import NoiseKey
from fastscore.solvers import names
from fastscore.testing import no_host_sync

N, F = 5, 3  # elements, and features of each
SIZES = torch.tensor([5, 1, 3, 2, 5, 4, 3])
MASK = torch.arange(N) < SIZES[:, None]
COND = {"mask": MASK, "shift": torch.linspace(-1.0, 1.0, 7)[:, None]}
SHAPES = {"mask": (N,), "shift": (1,)}


def normals(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return NoiseKey.of(seed, range(shape[0])).normal(0, math.prod(shape[1:]), dtype).view(shape)


A = normals(4, N, F, seed=1)


@dataclass(frozen=True)
class Symmetric(Projection):
    """A projection of somebody's own: matrices that equal their transpose."""

    def apply(self, x: Tensor, cond: Any = None, alpha: float | Tensor = 1.0) -> Tensor:
        return 0.5 * (x + x.mT)


@dataclass(frozen=True)
class Broken(Projection):
    """No projection: x itself or, in its kinds, half of it, its neighbour's, or a part along a slanted axis."""

    kind: str

    def apply(self, x: Tensor, cond: Any = None, alpha: float | Tensor = 1.0) -> Tensor:
        slanted = torch.cat([x[..., :1], x[..., :1], x[..., 2:]], -1)
        return {"half": 0.5 * x, "batch": x - x.mean(0), "slanted": slanted}[self.kind]


CASES: dict[str, tuple[Projection, tuple[int, ...]]] = {
    "masked": (fs.Padded("mask"), (N, F)),
    "masked second axis": (fs.Padded("mask", axis=1), (F, N)),
    "centred": (fs.Centred(), (N, F)),
    "centred within a mask": (fs.Centred("mask"), (N, F)),
    "centred, two columns": (fs.Centred("mask", columns=2), (N, F)),
    "centred scalars": (fs.Centred("mask"), (N,)),
    "constrained": (fs.Constrained(A), (N, F)),
    "constrained to values": (fs.Constrained(A, torch.tensor([1.0, -2.0, 0.5, 3.0])), (N, F)),
    "edges": (fs.Intersection((fs.Padded("mask"), fs.Padded("mask", axis=1))), (N, N)),
    "symmetric edges": (fs.Intersection((fs.Padded("mask"), fs.Padded("mask", 1), Symmetric())), (N, N)),
}
each_case = pytest.mark.parametrize("case", CASES)


def matrix_of(projection: Projection, shape: tuple[int, ...], cond: Any) -> tuple[Tensor, Tensor]:
    """P and o of one sample, from applications to unit vectors."""
    d = math.prod(shape)
    lines = {k: v[:1].expand(d, *v.shape[1:]) for k, v in cond.items()}
    P = projection.apply(torch.eye(d, dtype=torch.float64).reshape(d, *shape), lines, 0.0).flatten(1)
    one = {k: v[:1] for k, v in cond.items()}
    return P, projection.apply(torch.zeros(1, *shape, dtype=torch.float64), one).flatten()


@each_case
def test_orthogonal_projections_with_their_dimensions(case):
    projection, shape = CASES[case]
    x = normals(7, *shape)
    for k in range(7):
        P, o = matrix_of(projection, shape, {name: v[k : k + 1] for name, v in COND.items()})
        assert (P - P.T).abs().max() < 1e-14
        assert (P @ P - P).abs().max() < 1e-14
        assert (P @ o).abs().max() < 1e-14
        found = projection.apply(x[k : k + 1], {n: v[k : k + 1] for n, v in COND.items()}, torch.tensor([0.3]))
        assert (found.flatten() - P @ x[k].flatten() - 0.3 * o).abs().max() < 1e-7
        d = projection.dimensions(x, COND)
        assert d.dtype == torch.int64
        assert int(d[k]) == round(float(P.trace()))
    assert d.equal(Projection.dimensions(projection, x, COND))
    assert pickle.loads(pickle.dumps(projection)) == projection


def test_masks_and_centres_of_mass_are_what_they_say():
    x = normals(7, N, F, dtype=torch.float32)
    x[~MASK] = math.nan
    y = fs.Padded("mask").apply(x, COND)
    assert y[MASK].equal(x[MASK])
    assert bool((y[~MASK] == 0.0).all())
    y = fs.Centred("mask", columns=2).apply(x, COND)
    assert bool((y[~MASK] == 0.0).all())
    assert y.sum(1)[:, :2].abs().max() < 1e-6
    assert y[MASK][:, 2].equal(x[MASK][:, 2])
    mean = torch.stack([x[k, :n].mean(0) for k, n in enumerate(SIZES)])
    assert (y - (x - mean[:, None]))[MASK][:, :2].abs().max() < 1e-6
    b = torch.tensor([1.0, -2.0, 0.5, 3.0])
    assert (fs.Constrained(A, b).apply(normals(7, N, F)).flatten(1) @ A.flatten(1).T - b).abs().max() < 1e-7


def net(u: Tensor, c_noise: Tensor, cond: Any = None) -> Tensor:
    """A network of x that stirs the elements it is shown, whatever subspace they are in."""
    flat = u.flatten(1)
    mixed = flat @ _stirring(flat.shape[1]).to(flat)
    shift = 0.0 if cond is None else cond["shift"].to(flat)
    return (torch.tanh(mixed + 0.1 * c_noise[:, None] + shift) + 0.5 * flat).view_as(u)


def _stirring(d: int) -> Tensor:
    return normals(d, d, seed=7) / d**0.5


def energy(D: Tensor, y: Tensor | None) -> Tensor:
    return (D.flatten(1) - 0.5).square().sum(1)


SCHEDULE, EPS = fs.VP(), fs.Parametrization("eps", "t")
SOLVERS: dict[str, dict[str, Any]] = {
    "ddim": {"solver": fs.DDIM(0.5)},
    "heun": {"solver": fs.Heun()},
    "dpmpp-2m": {"solver": fs.DPMpp2M()},
    "unipc": {"solver": fs.UniPC(3)},
    "restart": {"solver": fs.Restart((fs.Interval(0.3, 1.5, 2, 1),), fs.Heun())},
    "langevin": {"solver": fs.PredictorCorrector(fs.DDIM(), fs.Langevin())},
    "langevin, expected": {"solver": fs.PredictorCorrector(fs.DDIM(), fs.Langevin(norm="expected"))},
    "langevin, batch": {"solver": fs.PredictorCorrector(fs.DDIM(), fs.Langevin(norm="batch"))},
    "guide": {"solver": fs.PredictorCorrector(fs.DPMpp2M(), fs.Langevin()), "guide": fs.EnergyGuidance(energy, 0.1)},
    "guidance": {"solver": fs.DDIM(0.5), "guidance": fs.Guidance(2.0, (0.5, 10.0))},
    # v holds some of the data, of both outputs: what a norm of the score sees of it must cancel.
    "langevin of v": {
        "solver": fs.PredictorCorrector(fs.DDIM(), fs.Langevin()),
        "guidance": fs.Guidance(2.0),
        "prediction": "v",
    },
    "from data": {"solver": fs.EulerMaruyama(), "start": "data"},
    "dopri5": {"solver": fs.Dopri5(rtol=1e-13, atol=1.0), "grid": fs.Span(end=0.1)},
    "dpm-adaptive": {"solver": fs.DPMAdaptive(rtol=1e-13, atol=1.0)},
}


def in_coordinates(model: fs.ScoreModel, cond: Any) -> tuple[fs.ScoreModel, Tensor, Tensor]:
    """The model of y with x = alpha o + W y, W an orthonormal basis of the subspace; and W and o."""
    assert model.projection is not None
    P, o = matrix_of(model.projection, model.shape, cond)
    values, vectors = torch.linalg.eigh(P)
    W = vectors[:, values > 0.5]

    def inner(v: Tensor, t: Tensor, c: Any) -> Tensor:
        alpha = torch.as_tensor(SCHEDULE.alpha(t.numpy()))[:, None]
        lines = {k: v[:1].expand(len(t), *v.shape[1:]) for k, v in cond.items()}
        x = (alpha * o + v @ W.T).view(-1, *model.shape)
        return model.net(x, t, {**lines, "shift": c}).flatten(1) @ W

    null = model.null["shift"] if isinstance(model.null, dict) else None
    flat = fs.ScoreModel(inner, (W.shape[1],), SCHEDULE, model.parametrization, cond_shape=(1,), null=null)
    return flat, W, o


# Nearly every way on one of two cases; the rest among the slow tests.
ON_A_SET = ("ddim", "dpmpp-2m", "langevin, expected", "guide", "from data")
FAST = {("centred within a mask" if way in ON_A_SET else "constrained to values", way) for way in SOLVERS}
FAST -= {("constrained to values", "dpm-adaptive")}


@pytest.mark.thirds
@pytest.mark.parametrize(
    ("case", "way"),
    one_in(
        2,
        [pytest.param(case, way) if (case, way) in FAST else (case, way) for case in CASES for way in SOLVERS],
    ),
)
def test_a_run_is_the_run_in_coordinates_of_the_subspace(case, way):
    """With the same noise, for every kind of row: history, norms, guides, tolerances are those of d dimensions."""
    same_in_coordinates(case, SOLVERS[way], {} if way in ("dopri5", "dpm-adaptive") else {"grid": fs.uniform(5)})


@pytest.mark.parametrize("name", one_in(6, [n for n in names.SOLVERS if n not in ("none", *names.ADAPTIVE)]))
def test_every_solver_runs_in_coordinates_of_the_subspace(name):
    same_in_coordinates(
        "constrained to values", {"solver": name}, {"grid": fs.uniform(25 if name == "score-sde" else 6)}
    )


def same_in_coordinates(case: str, settings: dict[str, Any], grid: dict[str, Any]) -> None:
    (projection, shape), settings = CASES[case], dict(settings)
    predicts = fs.Parametrization(settings.pop("prediction", "eps"), "t")
    cond = {"mask": MASK[2:3], "shift": torch.tensor([[0.3]])}
    null = {"shift": torch.zeros(1)}
    model = fs.ScoreModel(net, shape, SCHEDULE, predicts, cond_shape=SHAPES, null=null, projection=projection)
    flat, W, o = in_coordinates(model, cond)
    inner = dict(settings)
    if "guide" in settings:
        inner["guide"] = fs.EnergyGuidance(lambda D, y: energy(D @ W.T + o, y), 0.1)
    common = {"dtype": torch.float64, "batch": 3, "backend": "reference", **grid}
    outer, inside = fs.Sampler(model, **settings, **common), fs.Sampler(flat, **inner, **common)
    z = normals(60, 3, math.prod(shape), seed=5)
    given: list[dict[str, Any]] = [{}, {}]
    if settings.get("start") == "data":
        init = o + normals(3, W.shape[1], seed=6) @ W.T
        given = [{"init": init.view(3, *shape)}, {"init": (init - o) @ W}]
    lines = {k: v.expand(3, *v.shape[1:]) for k, v in cond.items()}
    x = outer.run(range(3), noise=z.view(60, 3, *shape), cond=lines, **given[0]).flatten(1)
    y = inside.run(range(3), noise=z @ W, cond=lines["shift"], **given[1])
    alpha = 1.0 if outer.plan is None else float(SCHEDULE.alpha(outer.plan.rows[-1].s))
    assert (x - (alpha * o + y @ W.T)).abs().max() < 1e-9 * (1.0 + x.abs().max())


def with_padding(u: Tensor, c_noise: Tensor, cond: Any) -> Tensor:
    """A masked network: each element sees itself and a sum over the set; what it says of padding is NaN."""
    mask = cond["mask"].view(len(u), -1, *[1] * (u.ndim - 2))
    level = c_noise.to(u).reshape(-1, *[1] * (u.ndim - 1))
    total = torch.zeros_like(u[:, :1])
    for k in range(u.shape[1]):
        total = total + u[:, k : k + 1].masked_fill(~mask[:, k : k + 1], 0.0)
    shift = cond["shift"].to(u).view(-1, *[1] * (u.ndim - 1))
    return (u / (1.0 + u * u) + 0.1 * torch.tanh(total) + 0.1 * level + shift).masked_fill(~mask, math.nan)


def padded(n: int, **kw: Any) -> fs.ScoreModel:
    kw = {"projection": fs.Centred("mask"), "null": {"shift": torch.zeros(1)}, **kw}
    return fs.ScoreModel(with_padding, (n, 2), SCHEDULE, EPS, cond_shape={"mask": (n,), "shift": (1,)}, **kw)


def cond_of(n: int, at: Any = slice(None)) -> dict[str, Tensor]:
    return {"mask": (torch.arange(n) < SIZES[at][:, None]), "shift": COND["shift"][at]}


ENGINES: dict[str, dict[str, Any]] = {
    "plan": {"solver": fs.DPMpp2M(), "steps": 5},
    "plan + Langevin": {"solver": fs.PredictorCorrector(fs.DDIM(0.5), fs.Langevin(norm="expected")), "steps": 3},
    "clip": {"solver": fs.DDIM(0.5), "steps": 4, "clip": 0.5},
    "guidance": {"solver": fs.Heun(), "steps": 3, "guidance": fs.Guidance(3.0)},
    "guide": {"solver": fs.DDIM(), "steps": 3, "guide": fs.EnergyGuidance(lambda D, y: D.square().sum((1, 2)))},
    "Picard": {"solver": fs.DDIM(0.5), "steps": 5, "parallel": fs.Picard(3)},
    "Picard, guidance": {"solver": fs.Heun(), "steps": 3, "parallel": fs.Picard(3), "guidance": fs.Guidance(3.0)},
    "adaptive ODE": {"solver": fs.BogackiShampine(2.0, 2.0)},
    "adaptive SDE": {"solver": fs.GottaGoFast(5.0, 5.0)},
}


@pytest.mark.thirds
@pytest.mark.parametrize(
    "engine", [pytest.param(k, marks=[pytest.mark.slow] if k in ("adaptive ODE", "Picard") else []) for k in ENGINES]
)
def test_a_sample_depends_neither_on_its_company_nor_on_the_length_of_padding(engine):
    settings, ids = ENGINES[engine], range(len(SIZES))
    x = fs.Sampler(padded(N), batch=3, **settings).run(ids, cond=cond_of(N))
    assert bool((x[~MASK] == 0.0).all())
    assert x.sum(1).abs().max() < 1e-5 * x.abs().max()
    some = [5, 2, 6]
    assert fs.Sampler(padded(N), batch=3, **settings).run(some, cond=cond_of(N, some)).equal(x[some])
    longer = fs.Sampler(padded(9), batch=3, **settings).run(ids, cond=cond_of(9))
    assert longer[:, :N].equal(x)
    assert bool((longer[:, N:] == 0.0).all())
    if engine.startswith("Picard"):
        one_by_one = {k: v for k, v in settings.items() if k != "parallel"}
        assert fs.Sampler(padded(N), batch=3, **one_by_one).run(ids, cond=cond_of(N)).equal(x)


@pytest.mark.parametrize("engine", [engine for engine in ENGINES if not engine.startswith(("Picard", "adaptive"))])
def test_every_row_and_every_input_lies_on_the_subspace(engine):
    inputs: list[Tensor] = []

    def watched(u: Tensor, c_noise: Tensor, cond: Any) -> Tensor:
        inputs.append(u.detach().clone())
        return with_padding(u, c_noise, cond)

    model = replace(padded(N), net=watched)
    seen: list[Tensor] = []
    sampler = fs.Sampler(model, batch=7, **ENGINES[engine])

    def look(step: Any) -> None:
        seen.extend([step.x] if step.x0 is None else [step.x, step.x0])

    sampler.run(range(7), cond=cond_of(N), callback=look)
    assert sampler.plan is not None
    assert len(seen) >= len(sampler.plan.rows)
    for v in seen + inputs:
        assert bool((v[~MASK] == 0.0).all())
        assert v.sum(1).abs().max() < 1e-5 * v.abs().max()


@pytest.mark.slow
def test_accepted_steps_of_adaptive_solvers_lie_on_the_subspace():
    sampler = fs.Sampler(padded(N), batch=7, solver=fs.GottaGoFast(2.0, 2.0))
    states = fs.trajectory(sampler, range(7), cond=cond_of(N)).states.nan_to_num(0.0)
    assert len(states) > 3
    assert bool((states[:, ~MASK] == 0.0).all())
    assert bool((states.sum(2).abs() <= 1e-5 * states.abs().amax((2, 3))[..., None]).all())


@pytest.mark.parametrize("engine", ["plan + Langevin", pytest.param("guidance", marks=pytest.mark.slow)])
def test_backends_and_captured_rows_have_the_same_bits(engine):
    for settings in (ENGINES[engine],):
        runs = [
            fs.Sampler(padded(N), batch=7, backend=name, **settings).run(range(7), cond=cond_of(N))
            for name in ("reference", "auto")
        ]
        assert runs[0].equal(runs[1])
        sampler = fs.Sampler(padded(N), batch=7, backend="reference", **settings)
        sampler.run(range(7), cond=cond_of(N))
        loop: Loop = sampler.engine.loop  # pyright: ignore
        assert loop.ops is REFERENCE
        with no_host_sync():
            loop.run()
        for mode in ("step", "loop"):
            assert Graphed(loop, Tape(), mode).run().equal(runs[0])


def test_the_null_condition_changes_no_subspace():
    """The unconditional evaluation may be told another mask; the sample is what its own mask says."""
    model = padded(N, null={"shift": torch.zeros(1), "mask": torch.ones(N, dtype=torch.bool)})
    x = fs.Sampler(model, batch=7, steps=3, guidance=fs.Guidance(3.0)).run(range(7), cond=cond_of(N))
    assert bool((x[~MASK] == 0.0).all())
    assert x.isfinite().all()


def test_parts_of_a_joint_model_have_their_own():
    def both(u: dict[str, Tensor], c_noise: dict[str, Tensor], cond: Any) -> dict[str, Tensor]:
        return {name: with_padding(u[name], c_noise[name], cond) for name in u}

    parts = {
        "positions": fs.Part((N, 2), fs.VP(), EPS, fs.Centred("mask")),
        "features": fs.Part((N, 3), fs.VP(), EPS, fs.Padded("mask")),
    }
    model = fs.JointModel(both, parts, cond_shape=SHAPES, null={"shift": torch.zeros(1)})
    langevin = fs.PredictorCorrector(fs.DDIM(), fs.Langevin())
    for guidance, solver in ((None, langevin), (fs.Guidance(2.0), fs.DPMpp2M())):
        sampler = fs.JointSampler(model, solver=solver, grid=fs.uniform(4), batch=3, guidance=guidance)
        x = sampler.run(range(7), cond=COND)
        assert all(bool((v[~MASK] == 0.0).all()) for v in x.values())
        assert all(bool(v.isfinite().all()) for v in x.values())
        assert x["positions"].sum(1).abs().max() < 1e-5 * x["positions"].abs().max() < x["features"].sum(1).abs().max()
    with pytest.raises(ValueError, match="Centred: the condition 'set' is missing"):
        fs.JointModel(both, {"a": fs.Part((N, 2), fs.VP(), EPS, fs.Centred("set"))}, cond_shape=SHAPES)
    off = {"positions": torch.ones(N, 2), "features": torch.zeros(N, 3)}
    with pytest.raises(ValueError, match="init lies off the subspace of Centred"):
        fs.JointSampler(model, steps=2, start="data").run(range(7), cond=COND, init=off)


def test_what_starts_and_what_is_known_lies_on_the_subspace():
    model, cond = padded(N), cond_of(N)
    x0 = fs.Centred("mask").apply(normals(7, N, 2, dtype=torch.float32), cond)
    sampler = fs.Sampler(model, steps=3, start="data", batch=7)
    assert sampler.run(range(7), cond=cond, init=x0).isfinite().all()
    with pytest.raises(ValueError, match=r"init lies off .* Centred for 7 of 7 samples, by 0.5.*apply\(init, cond\)"):
        sampler.run(range(7), cond=cond, init=x0 + 0.5 * MASK[:, :, None])
    known = fs.Known(x0, torch.tensor([True, False, False, False, False])[:, None].expand(N, 2))
    with pytest.raises(ValueError, match="known: Centred moves known data"):
        fs.Sampler(model, steps=3).run(range(7), cond=cond, known=known)
    masked = padded(N, projection=fs.Padded("mask"))
    x = fs.Sampler(masked, steps=3, batch=3).run(range(7), cond=cond, known=known)
    assert x[:, 0].equal(x0[:, 0])
    assert bool((x[~MASK] == 0.0).all())
    with pytest.raises(ValueError, match="known lies off the subspace of Padded"):
        fs.Sampler(masked, steps=3).run(range(7), cond=cond, known=fs.Known(x0 + 1.0, torch.tensor(True)))


def test_a_model_says_what_does_not_fit():
    with pytest.raises(ValueError, match="condition 'set' is missing: this model has conditions of shape"):
        padded(N, projection=fs.Padded("set"))
    with pytest.raises(ValueError, match=r"'mask' has shape \(5,\); from axis 1 on samples \(5, 2\) have \(2,\)"):
        padded(N, projection=fs.Padded("mask", axis=1))
    for bad in (fs.Centred("mask", columns=3), fs.Centred("mask", axis=2), fs.Constrained(torch.ones(1, 3))):
        with pytest.raises(ValueError, match=r"columns|axis"):
            padded(N, projection=bad)
    with pytest.raises(ValueError, match="bool tensor, True where an element is there"):
        fs.Sampler(padded(N), steps=2).run(range(7), cond={**COND, "mask": MASK.float()})
    for name in ("transform", "base"):
        scaled = replace(padded(N), projection=None, **{name: Affine((0.0,) * 2, (1.0,) * 2)})
        with pytest.raises(ValueError, match=f"{name} gives each one of its own"):
            replace(scaled, projection=fs.Padded("mask"))
    with pytest.raises(ValueError, match="orthogonal in x"):
        fs.whitened(padded(N), Diagonal(torch.ones(10)))
    with pytest.raises(ValueError, match="give both the same"):
        fs.Sampler(padded(N), guidance=fs.Guidance(2.0, model=padded(N, projection=None)))
    with pytest.raises(ValueError, match="leaves the subspace"):
        level_score(padded(N))
    assert fs.Sampler(padded(N)).record()["projection"] == "Centred(mask='mask', axis=0, columns=None)"


@pytest.mark.parametrize(
    ("projection", "said"),
    [
        (Broken("half"), "no orthogonal projection"),
        (Broken("slanted"), "no orthogonal projection"),
        (Broken("batch"), "sees other samples"),
        (fs.Intersection((fs.Padded("mask"), fs.Centred())), "parts must commute"),
    ],
    ids=["half", "slanted", "batch", "not commuting"],
)
def test_what_is_no_projection_is_found_out(projection, said):
    with pytest.raises(ValueError, match=said):
        fs.Sampler(padded(N, projection=projection), steps=2).run(range(7), cond=cond_of(N))


@pytest.mark.parametrize(
    ("matrix", "values", "said"),
    [
        (torch.ones(3), None, r"matrix is \(3,\)"),
        (torch.full((1, 2), math.inf), None, "finite"),
        (torch.ones(2, 3), torch.ones(3), r"values is \(3,\)"),
        (torch.ones(2, 3), torch.tensor([1.0, 2.0]), "contradict each other"),
        (torch.zeros(1, 3), torch.ones(1), "contradict each other"),
    ],
)
def test_equations_that_cannot_be(matrix, values, said):
    with pytest.raises(ValueError, match=said):
        fs.Constrained(matrix, values)


@pytest.mark.slow
def test_the_moments_of_a_gaussian_on_a_subspace():
    """Centred sets of several sizes, and the sum that a constraint keeps: the variance of every dimension is 1/4."""
    variance, ids = 0.25, range(1400)

    def gaussian(u: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        return u * (variance / (variance + sigma**2)).reshape(-1, 1, 1) + 5.0

    model = replace(padded(N), net=gaussian, schedule=fs.EDM(), parametrization=fs.Parametrization("x0", "sigma"))
    cond = {k: v.repeat(200, *[1] * (v.ndim - 1)) for k, v in cond_of(N).items()}
    ways: tuple[dict[str, Any], ...] = ({"steps": 30}, {"solver": fs.GottaGoFast(0.05, 0.01)})
    for settings in ways:
        x = fs.Sampler(model, batch=1400, **settings).run(ids, cond=cond)
        d = fs.Centred("mask").dimensions(x, cond)
        found = x.square().flatten(1).sum(1).view(200, 7)
        for k in range(7):
            n = 200 * int(d[k])
            off = float(found[:, k].sum()) - n * variance
            # Four standard errors of a chi-square of n degrees, and 5 % for the steps.
            assert abs(off) <= variance * (4.0 * math.sqrt(2.0 * n) + 0.05 * n)


SPREAD = torch.tensor([0.6, 0.3])  # of each column


def gaussian_sets(**kw: Any) -> fs.ScoreModel:
    """Centred sets of N(0, SPREAD^2) points; what the network says off the subspace is wrong."""

    def denoiser(u: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        variance = SPREAD.to(u).square()
        return u * variance / (variance + sigma[:, None, None] ** 2) + torch.tensor([2.0, -1.0]).to(u)

    return replace(padded(N), net=denoiser, schedule=fs.EDM(), parametrization=fs.Parametrization("x0", "sigma"), **kw)


def closed_form(x: Tensor, cond: Any, noise: float) -> Tensor:
    """ln p on the subspace: (n - 1) independent numbers a column."""
    variance = SPREAD.double().square() + noise**2
    count = (cond["mask"].sum(1) - 1)[:, None]
    return -0.5 * (x.square().sum(1) / variance + count * torch.log(2.0 * math.pi * variance)).sum(1)


@pytest.mark.parametrize(
    ("probe", "schedule"),
    [("exact", None), pytest.param("rademacher", fs.VP(), marks=pytest.mark.slow)]
    + [pytest.param("exact", schedule, marks=pytest.mark.slow) for schedule in (fs.VP(), fs.SubVP(), fs.Flow())],
)
def test_log_likelihoods_are_densities_on_the_subspace(probe, schedule):
    """Sets of 1 to 5 points in one batch; no set gets anything for its padding."""
    model, cond = gaussian_sets(), cond_of(N)
    tolerance = 1e-2 if schedule is None else 1e-4
    solver = fs.Dopri5(tolerance, tolerance)
    settings = {"schedule": schedule, "dtype": torch.float64, "batch": 7, "solver": solver}
    flow = fs.ProbabilityFlow(model, **settings)
    assert model.projection is not None
    x = model.projection.apply(SPREAD * normals(7, N, 2), cond)
    probes = 64 if probe == "rademacher" else 1
    found = flow.log_likelihood(x, cond=cond, probe=probe, probes=probes)
    end = flow.grid(flow.schedule)[-1]
    noise = float(flow.schedule.sigma(end) / flow.schedule.alpha(end))
    d = 2 * (SIZES - 1)
    assert found.dimensions is not None
    assert found.dimensions.equal(d)
    off = (found.nats - closed_form(x, cond, noise)).abs()
    assert bool((off <= 20.0 * tolerance + 4.0 * found.stderr).all())
    bits = found.bits_per_dim()[d > 0]
    assert (bits + found.nats[d > 0] / (d[d > 0].double() * math.log(2.0))).abs().max() < 1e-12
    assert bool((found.latent[~MASK] == 0.0).all())
    assert found.latent.sum(1).abs().max() < 1e-9
    if schedule is None:
        return
    longer = gaussian_sets(shape=(7, 2), cond_shape={"mask": (7,), "shift": (1,)})
    flow = fs.ProbabilityFlow(longer, **settings)
    wide = torch.cat([x, torch.zeros(7, 2, 2)], 1)
    assert flow.log_likelihood(wide, cond=cond_of(7), probe=probe, probes=probes).nats.equal(found.nats)


@pytest.mark.slow
def test_densities_where_a_sum_has_a_value():
    """Constrained data around a point that is not 0: its mean is no part of the density."""
    b, variance = torch.tensor([2.0, -1.0], dtype=torch.float64), 0.25
    matrix = normals(2, 6, seed=3)
    projection = fs.Constrained(matrix, b)
    o = projection.apply(torch.zeros(1, 6, dtype=torch.float64))

    def denoiser(u: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        return o + (u - o) * (variance / (variance + sigma[:, None] ** 2)) + matrix.sum(0)

    model = fs.ScoreModel(
        denoiser, (6,), fs.EDM(), fs.Parametrization("x0", "sigma"), projection=projection, scales=(0.5, 0.5)
    )
    x = projection.apply(0.5 * normals(5, 6))
    for schedule in (None, fs.VP()):
        flow = fs.ProbabilityFlow(model, schedule=schedule, dtype=torch.float64, batch=5)
        end = flow.grid(flow.schedule)[-1]
        total = variance + float(flow.schedule.sigma(end) / flow.schedule.alpha(end)) ** 2
        closed = -0.5 * (x - o).square().sum(1) / total - 2.0 * math.log(2.0 * math.pi * total)
        assert (flow.log_likelihood(x).nats - closed).abs().max() < 1e-3
        z = flow.encode(x)
        alpha = float(flow.schedule.alpha(flow.grid(flow.schedule)[0]))
        assert (projection.apply(z, None, alpha) - z).abs().max() < 1e-12 * z.abs().max()
        assert (flow.decode(z) - x).abs().max() < 1e-3


@pytest.mark.slow
def test_encoding_and_gradients_stay_on_the_subspace():
    model, cond = gaussian_sets(), cond_of(N)
    projection = model.projection
    assert projection is not None
    flow = fs.ProbabilityFlow(model, dtype=torch.float64, batch=7)
    x = projection.apply(SPREAD * normals(7, N, 2), cond)
    again = flow.decode(flow.encode(x, cond=cond), cond=cond)
    assert (again - x).abs().max() < 1e-4
    assert bool((again[~MASK] == 0.0).all())
    assert again.sum(1).abs().max() < 1e-12
    at = x.clone().requires_grad_()
    score = torch.autograd.grad(flow.log_likelihood(at, cond=cond).nats.sum(), at)[0]
    exact = -x / (SPREAD.double().square() + float(flow.schedule.sigma(flow.grid(flow.schedule)[-1])) ** 2)
    assert (score - exact).abs().max() < 1e-3 * exact.abs().max()
    assert score.sum(1).abs().max() < 1e-9
    with pytest.raises(ValueError, match=r"x lies off the subspace of Centred for 1 of 7 .* by 0.333 .* id 2 at \("):
        flow.log_likelihood(
            x + torch.eye(7)[:, 2].view(7, 1, 1) * torch.eye(5)[:, 1].view(5, 1) * SPREAD.new_tensor([1.0, 0.0]),
            cond=cond,
        )


def test_the_sampler_of_equivariant_diffusion():
    """Positions around their centre of mass and features of atoms, against a loop after Hoogeboom et al. 2022."""
    schedule, n = fs.VP(), N
    times = torch.linspace(0.9, 0.1, 7, dtype=torch.float64)
    mask = MASK[:, :, None].double()

    def on_subspace(v: Tensor) -> Tensor:
        v = v * mask
        x = v[..., :2] - v[..., :2].sum(1, keepdim=True) / mask.sum(1, keepdim=True) * mask
        return torch.cat([x, v[..., 2:]], 2)

    z = normals(8 * 7, n, F, seed=11).view(8, 7, n, F)
    label = fs.Parametrization("eps", "t")
    model = fs.ScoreModel(net, (n, F), schedule, label, cond_shape=SHAPES, projection=fs.Centred("mask", columns=2))
    # eta = 1: the posterior of the forward process, as the paper samples it.
    sampler = fs.Sampler(model, solver=fs.DDIM(1.0), grid=fs.Times(tuple(times.tolist())), dtype=torch.float64, batch=7)
    found = sampler.run(range(7), noise=z, cond=COND)

    alpha, sigma = (torch.as_tensor(v(times.numpy())) for v in (schedule.alpha, schedule.sigma))
    length = torch.hypot(alpha, sigma)
    x = length[0] * on_subspace(z[0])
    for k in range(6):
        ratio = alpha[k] / alpha[k + 1]
        added = sigma[k].square() - (ratio * sigma[k + 1]).square()
        eps = on_subspace(net(x, times[k].expand(7), COND))
        mean = x / ratio - added / (ratio * sigma[k]) * eps
        x = on_subspace(mean + added.sqrt() * sigma[k + 1] / sigma[k] * on_subspace(z[k + 1]))
    assert (found - x).abs().max() < 1e-10 * x.abs().max()
