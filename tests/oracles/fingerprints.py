"""What the engine computes, as SHA-256 of samples: one entry a setting, so that a change of any bit shows.

``python tests/oracles/fingerprints.py`` writes tests/data/fingerprints.json: the settings whose network and solver
add, multiply, divide and take square roots, which IEEE 754 fixes. ``python tests/oracles/fingerprints.py --local
FILE`` writes the others (exp, products of matrices, autograd), whose last bits belong to one machine and its
libraries: before and after a change, on the same machine, they are equal.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from cases import CASES, SETTINGS, knots_of
from torch import Tensor

import fastscore as fs
from fastscore import chains
from fastscore.guidance import measurements
from fastscore.kernels.cpu import library
from fastscore.model.analytic import gaussian, mixture
from fastscore.model.coordinates import Diagonal, change_basis, grey_basis, in_basis
from fastscore.process.discrete import discrete_vp, smld
from fastscore.process.grid import Span, Times
from fastscore.solvers import AnnealedLangevin, Langevin

FILE = Path(__file__).parents[1] / "data" / "fingerprints.json"
BACKENDS = ("reference", "cpp") if library.library_file() else ("reference",)
SHAPE, BATCH, IDS, SEED = (3, 2, 3), 3, (0, 2**40 + 7, 5, 1), 9
SCHEDULES = {
    "vp": fs.VP(), "subvp": fs.SubVP(), "ve": fs.VE(), "edm": fs.EDM(), "tutorial": fs.TutorialVE(),
    "ddpm": discrete_vp("linear", 100), "smld": smld(20, 0.02, 3.0), "flow": fs.Flow(),
}  # fmt: skip
Draw = Callable[[str], Tensor]


def net(u: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
    """A rational function of every element, its time and its condition."""
    shift = (c_noise / (1.0 + c_noise.abs())).reshape(-1, *[1] * (u.ndim - 1))
    if cond is not None:
        cond = cond if cond.is_floating_point() else cond.to(u.dtype).reshape(-1, *[1] * (u.ndim - 1))
        shift = shift + 0.25 * cond
    return u / (1.0 + u * u) + 0.125 * shift


def other(u: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
    return 0.5 * net(u, c_noise, cond)


def model(prediction: str = "eps", label: str = "t", function: Callable = net, **more: object) -> fs.ScoreModel:
    return fs.ScoreModel(function, SHAPE, fs.EDM(), fs.Parametrization(prediction, label), **more)


def drawn(score_model: fs.ScoreModel, run: dict | None = None, **settings: object) -> Draw:
    def draw(backend: str) -> Tensor:
        sampler = fs.Sampler(score_model, batch=BATCH, backend=backend, **settings)
        return sampler.run(IDS, SEED, **(run or {}))

    return draw


def portable() -> Iterator[tuple[str, Draw]]:
    for name, case in CASES.items():
        for k, setting in enumerate(case.schedules[:6]):
            clean = k % 2 == 0
            knots, schedule = Times(tuple(knots_of(name, setting, clean))), SETTINGS[setting].schedule
            own = fs.ScoreModel(net, SHAPE, schedule, fs.Parametrization("x0"))
            yield f"{name}/{setting}/{'clean' if clean else 'noisy'}", drawn(own, solver=case.solver, grid=knots)
    for name, schedule in SCHEDULES.items():
        for kind in ("uniform", "quadratic", "logsnr", "karras"):
            if (name == "flow" and kind in ("logsnr", "karras")) or (name == "ve" and kind == "quadratic"):
                continue
            label = "t" if name == "flow" else "sigma"
            own = fs.ScoreModel(net, SHAPE, schedule, fs.Parametrization("x0", label))
            yield f"grid/{name}/{kind}", drawn(own, grid=getattr(fs, kind)(4, clean=True))
        own = fs.ScoreModel(net, SHAPE, schedule, fs.Parametrization("x0"))
        for solver in (Langevin(), Langevin(0.1, 2, "batch"), Langevin(norm="expected"), AnnealedLangevin(0.2)):
            both = fs.PredictorCorrector(fs.DDIM(1.0), solver)
            yield f"corrector/{name}/{solver}", drawn(own, solver=both, grid=fs.uniform(4))
        yield f"defaults/{name}", drawn(own)
        yield f"clip/{name}", drawn(own, clip=0.5, grid=fs.uniform(4, clean=True))
        yield f"picard/{name}", drawn(own, solver=fs.DDIM(0.5), grid=fs.uniform(9), parallel=fs.Picard(4))
        for start in ("data", "state"):
            yield (
                f"start/{name}/{start}",
                drawn(own, {"init": 0.25 * torch.ones(SHAPE)}, grid=fs.uniform(4, clean=True), start=start),
            )
    for spacing in ("leading", "trailing", "linspace"):
        own = fs.ScoreModel(net, SHAPE, SCHEDULES["ddpm"])
        yield f"grid/ddpm/{spacing}", drawn(own, grid=fs.indices(7, spacing), solver=fs.DDPM())
    for prediction in ("eps", "x0", "v", "score", "flow", "edm"):
        for label in ("t", "999t", "sigma", "log_sigma/4"):
            for on in ("vp", "edm", "smld"):
                yield (
                    f"prediction/{prediction}/{label}/{on}",
                    drawn(model(prediction, label), schedule=SCHEDULES[on], grid=fs.uniform(4)),
                )
    yield from _guided()
    yield from _known()
    for part in ("image", "vector"):
        yield f"joint/{part}", _joint(part)
    yield "mcmc/ula", lambda backend: chains.run(
        None, torch.ones(1, *SHAPE), 0.01, 5, IDS, SEED,
        score=lambda x: -x / (1.0 + x * x), spread=0.5, method="ula", batch=BATCH, backend=backend,
    ).x  # fmt: skip
    for preset in (fs.ncsn(5, steps=2), fs.ncsnv2(5, steps=2)):
        yield f"preset/{preset['grid'].steps}", drawn(model("score"), **preset)


def _guided() -> Iterator[tuple[str, Draw]]:
    classes, tensor = model(classes=3, null=3), model(cond_shape=SHAPE)
    cond, null = 0.5 * torch.ones(SHAPE), -0.25 * torch.ones(SHAPE)
    solvers = {
        "2m": fs.DPMpp2M(),
        "heun": fs.Heun(),
        "ddpm": fs.DDPM(),
        "pc": fs.PredictorCorrector(fs.DDIM(), Langevin()),
    }
    for name, solver in solvers.items():
        for on in ("vp", "subvp", "edm", "ddpm"):
            common = {"schedule": SCHEDULES[on], "solver": solver, "grid": fs.uniform(4, clean=True)}
            for weight, interval in ((2.0, (0.0, math.inf)), (3.0, (0.05, 1.5))):
                yield (
                    f"guidance/{name}/{on}/{weight}",
                    drawn(classes, {"labels": [0, 1, 2, 3]}, guidance=fs.Guidance(weight, interval), **common),
                )
            yield (
                f"guidance/{name}/{on}/tensor",
                drawn(tensor, {"cond": cond}, guidance=fs.Guidance(1.5, null=null), **common),
            )
            yield (
                f"guidance/{name}/{on}/model",
                drawn(classes, {"labels": 1}, guidance=fs.Guidance(1.5, model=model("x0", function=other)), **common),
            )
            if name != "pc":
                yield (
                    f"guide/{name}/{on}/threshold",
                    drawn(classes, {"labels": "random"}, guide=fs.DynamicThreshold(0.9, 0.5), **common),
                )


def _known() -> Iterator[tuple[str, Draw]]:
    y, mask = 0.5 * torch.ones(SHAPE), torch.zeros(SHAPE, dtype=torch.bool)
    mask[:, :1] = True
    given = {"known": fs.Known(y, mask)}
    for on in ("vp", "subvp", "ve", "edm"):
        for name, solver in (
            ("2m", fs.DPMpp2M()),
            ("repaint", fs.RePaint(fs.DDPM(), 2, 2)),
            ("pc", fs.PredictorCorrector(fs.DDIM(1.0), Langevin())),
        ):
            yield f"known/{name}/{on}", drawn(model(), given, schedule=SCHEDULES[on], solver=solver, grid=fs.uniform(5))


def _joint(part: str) -> Draw:
    def draw(backend: str) -> Tensor:
        parts = {"image": fs.Part((1, 2, 2), fs.VP()), "vector": fs.Part((5,), fs.VE())}

        def both(u: dict, c_noise: dict) -> dict:
            return {name: net(u[name], c_noise[name]) for name in u}

        sampler = fs.JointSampler(fs.JointModel(both, parts), grid=fs.uniform(5), batch=BATCH, backend=backend)
        return sampler.run(IDS, SEED)[part]

    return draw


def local() -> Iterator[tuple[str, Draw]]:
    points, images = fs.score_model(mixture()), fs.score_model(gaussian(0.2, 0.5, SHAPE))
    for on, schedule in SCHEDULES.items():
        for solver in (fs.DPMpp2M(), fs.DDPM(), fs.Heun(), fs.UniPC(), fs.DPMSolver(3)):
            grid = fs.uniform(6, clean=True) if on != "flow" else fs.uniform(6, start=0.95)
            yield f"mixture/{on}/{solver}", drawn(points, schedule=schedule, solver=solver, grid=grid)
        loose = {"rtol": 0.05, "atol": 0.05}
        for solver in (
            fs.Dopri5(**loose), fs.BogackiShampine(**loose), fs.DPMAdaptive(2), fs.DPMAdaptive(3),
            fs.GottaGoFast(**loose),
        ):  # fmt: skip
            for clean in (True, False):
                yield (
                    f"adaptive/{on}/{solver}/{clean}",
                    drawn(points, schedule=schedule, solver=solver, grid=Span(clean=clean)),
                )
        for name in ("log_likelihood", "encode", "decode"):
            yield f"flow/{on}/{name}", _flow(points, schedule, name)
    linear = measurements.Matrix(torch.arange(36.0).reshape(2, 18) / 36.0)
    y = {"y": torch.ones(len(IDS), 2)}
    for on in ("vp", "edm"):
        common = {"schedule": SCHEDULES[on], "grid": fs.karras(5)}
        yield f"guide/{on}/pigdm", drawn(images, y, guide=fs.PiGDM(linear, 0.1), **common)
        yield f"guide/{on}/dps", drawn(images, y, guide=fs.DPS(linear, 0.5), **common)
        yield (
            f"guide/{on}/energy",
            drawn(images, guide=fs.EnergyGuidance(lambda D, y: D.flatten(1).square().sum(1), 0.1), **common),
        )
        yield (
            f"guide/{on}/classifier",
            drawn(images, guide=fs.ClassifierGuidance(lambda x, a, s, y: -x.flatten(1).square().sum(1)), **common),
        )
        chain = fs.Chain((fs.CFGRescale(), fs.DynamicThreshold()))
        yield (
            f"guide/{on}/chain",
            drawn(model(classes=2, null=2), {"labels": 1}, guide=chain, guidance=fs.Guidance(3.0), **common),
        )
    M = grey_basis()
    first = torch.zeros(SHAPE, dtype=torch.bool)
    first[0] = True
    known = fs.Known(change_basis(0.5 * torch.ones(SHAPE), M), first)
    yield "basis", drawn(in_basis(images, M), {"known": known}, grid=fs.karras(5), schedule=fs.VP())
    yield "whitened", drawn(fs.whitened(points, Diagonal(torch.tensor([1.0, 0.2]))), schedule=fs.VE())
    target = mixture()
    for method in ("ula", "mala"):
        yield (
            f"mcmc/{method}",
            lambda backend, method=method: (
                chains.run(
                    target.log_density,
                    torch.zeros(1, 2),
                    5e-3,
                    20,
                    IDS,
                    SEED,
                    score=target.score,
                    method=method,
                    backend=backend,
                ).x
            ),
        )
    yield (
        "fashion",
        lambda backend: fs.Sampler(fs.load_model("fashion"), batch=BATCH, backend=backend, grid=fs.karras(4)).run(
            IDS, SEED, labels="random"
        ),
    )


def _flow(score_model: fs.ScoreModel, schedule: object, name: str) -> Draw:
    def draw(backend: str) -> Tensor:
        flow = fs.ProbabilityFlow(score_model, schedule=schedule, solver=fs.Dopri5(1e-3, 1e-3), batch=BATCH)
        result = getattr(flow, name)(torch.linspace(-1.0, 1.0, 8).reshape(4, 2))
        return torch.stack([result.nats, result.stderr]) if name == "log_likelihood" else result

    return draw


def digest(x: Tensor) -> str:
    """SHA-256 of a tensor: its dtype, shape and bytes."""
    head = f"{x.dtype} {tuple(x.shape)}".encode()
    return hashlib.sha256(head + x.detach().contiguous().numpy().tobytes()).hexdigest()


def prints(settings: Iterator[tuple[str, Draw]], backend: str) -> dict[str, str]:
    """Fingerprint of every setting on one backend."""
    found: dict[str, str] = {}
    for name, draw in settings:
        assert name not in found, name
        found[name] = digest(draw(backend))
    return found


if __name__ == "__main__":
    chosen = local if "--local" in sys.argv else portable
    made = [prints(chosen(), backend) for backend in BACKENDS]
    assert all(one == made[0] for one in made), [k for k in made[0] if made[0][k] != made[-1][k]]
    target = Path(sys.argv[-1]) if "--local" in sys.argv else FILE
    target.write_text(json.dumps(made[0], indent=0) + "\n")
    print(f"{len(made[0])} fingerprints on {', '.join(BACKENDS)}: {target}")
