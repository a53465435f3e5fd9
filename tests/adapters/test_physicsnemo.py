"""Networks and schedulers with PhysicsNeMo's interface: its own runs are repeated, and its loop runs our solvers."""

from __future__ import annotations

import math
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import science
import torch
from torch import Tensor, nn

from fastscore import EDM, DPMpp2M, Euler, Heun, Sampler
from fastscore.adapters import from_physicsnemo
from fastscore.adapters.physicsnemo import LastEuler, Solver, times
from fastscore.process.schedule import f, g2
from fastscore.solvers import Churn

RECORDED = np.load(science.FILE)
KINDS = list(science.SCHEDULERS)
SOLVERS = {"euler": LastEuler(Euler()), "heun": LastEuler(Heun())}


def exact(kind: str, **fields: Any) -> tuple[Any, Any]:
    scheduler = science.SCHEDULERS[kind]()
    return scheduler, from_physicsnemo(science.Exact(scheduler), scheduler, science.SHAPE, **fields)


def right_hand_side(scheduler: Any) -> Any:
    """The ODE's dx/dt as ``get_denoiser`` makes it."""

    def rhs(x: Tensor, t: Tensor) -> Tensor:
        tb = t.reshape(-1, *[1] * (x.ndim - 1))
        alpha, sigma, da, ds = (getattr(scheduler, k)(tb) for k in ("alpha", "sigma", "alpha_dot", "sigma_dot"))
        score = (alpha * science.Exact(scheduler)(x, t) - x) / sigma**2
        return da / alpha * x - (ds * sigma - da / alpha * sigma**2) * score

    return rhs


@pytest.mark.thirds
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_euler_and_heun_repeat_physicsnemo(kind: str, solver: str) -> None:
    scheduler, model = exact(kind)
    rhs = from_physicsnemo(right_hand_side(scheduler), scheduler, science.SHAPE, predicts="ode")
    noise, grid = science.normals(1 + science.STEPS, 3, *science.SHAPE), times(scheduler, science.STEPS)
    for one in (model, rhs):
        sampler = Sampler(one, solver=SOLVERS[solver], grid=grid, batch=2, dtype=torch.float64)
        ours = sampler.run(range(3), noise=noise[:1])
        theirs = torch.tensor(RECORDED[f"physicsnemo/{kind}/{solver}"])
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9 * float(theirs.abs().max()))


@pytest.mark.parametrize("inner", ["euler", "heun"])
def test_churn_repeats_physicsnemo(inner: str) -> None:
    scheduler, model = exact("edm")
    noise, grid = science.normals(1 + science.STEPS, 3, *science.SHAPE), times(scheduler, science.STEPS)
    churn = Churn(
        {"euler": Euler(), "heun": Heun()}[inner], churn=2.0, low=0.0, high=math.inf, noise=1.003, beyond=True
    )
    ours = Sampler(model, solver=churn, grid=grid, batch=3, dtype=torch.float64).run(range(3), noise=noise)
    theirs = torch.tensor(RECORDED[f"physicsnemo/edm/edm_stochastic_{inner}"])  # with gamma in float32
    assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_schedules_are_the_schedulers(kind: str) -> None:
    scheduler, model = exact(kind)
    schedule, t = model.schedule, times(scheduler, 5)(model.schedule)[:-1]
    time = torch.tensor(t)
    da, ds = scheduler.alpha_dot(time), scheduler.sigma_dot(time)
    alpha, sigma = scheduler.alpha(time), scheduler.sigma(time)
    assert np.allclose(f(schedule, t), (da / alpha).numpy())
    assert np.allclose(g2(schedule, t), (2.0 * ds * sigma - 2.0 * da / alpha * sigma**2).numpy())  # their "diffusion"
    assert schedule.prior_std == pytest.approx(float(sigma[0])) and schedule.t_clean == 0.0
    x = Sampler(model, solver="dpmpp-2m", steps=20, batch=500).run(range(1000))
    assert abs(float(x.mean()) - science.MEAN) < 0.02 and abs(float(x.std()) - science.VARIANCE**0.5) < 0.02


@pytest.mark.thirds
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp-2m", "dpmpp-2m-sde", "edm-churn", "unipc"])
def test_their_loop_with_our_solver_is_our_loop(kind: str, solver: str) -> None:
    scheduler, model = exact(kind)
    grid, ids = times(scheduler, 7), [5, 0, 2**40]
    object_ = Solver(science.Exact(scheduler), scheduler, solver=solver, grid=grid, seed=9)
    ours = Sampler(model, solver=solver, grid=grid, batch=3).run(ids, seed=9)
    for _ in range(2):  # the second run starts anew
        x = object_.init_latents(science.SHAPE, ids)
        for t, s in zip(object_.time_steps[:-1].float(), object_.time_steps[1:].float(), strict=True):
            x = object_.step(x, t.expand(3), s.expand(3))
        assert torch.equal(x, ours)
    alone = object_.init_latents(science.SHAPE, ids[1:2])
    for t, s in zip(object_.time_steps[:-1], object_.time_steps[1:], strict=True):
        alone = object_.step(alone, t.expand(1), s.expand(1))
    assert torch.equal(alone, ours[1:2])


def test_members_go_on_and_steps_of_other_grids_are_refused() -> None:
    scheduler, model = exact("edm")
    object_ = Solver(science.Exact(scheduler), scheduler, solver="dpmpp-2m-sde", grid=times(scheduler, 4))
    start = torch.full((2, *science.SHAPE), 40.0)

    def run() -> Tensor:
        x = start
        for t, s in zip(object_.time_steps[:-1], object_.time_steps[1:], strict=True):
            x = object_.step(x, t.expand(2), s.expand(2))
        return x

    first, second = run(), run()
    sampler = Sampler(model, solver="dpmpp-2m-sde", grid=times(scheduler, 4), batch=4, start="state")
    assert torch.equal(torch.cat([first, second]), sampler.run(range(4), init=start[0]))
    halfway = object_.step(start, object_.time_steps[:1], object_.time_steps[1:2])
    object_.ids = range(2)
    assert not halfway.equal(start) and run().equal(first)  # abandoned and begun again
    with pytest.raises(ValueError, match=r"a step from t = 3 to 1 is none of this solver's"):
        object_.step(start, torch.tensor([3.0]), torch.tensor([1.0]))
    object_.ids = range(3)
    with pytest.raises(ValueError, match="3 ids for a batch of 2"):
        run()
    with pytest.raises(ValueError, match="Dopri5 chooses its own steps"):
        Solver(science.Exact(scheduler), scheduler, solver="dopri5")


def test_members_do_not_depend_on_the_batch() -> None:
    scheduler, _ = exact("edm")
    net = Conditional()
    model = from_physicsnemo(net, scheduler, science.SHAPE, cond_shape=(1, 2, 2))
    image = science.normals(1, 2, 2).float()
    draws = [Sampler(model, solver="heun", steps=5, batch=b).run(range(6), seed=3, cond=image) for b in (1, 2, 6)]
    assert draws[0].equal(draws[1]) and draws[0].equal(draws[2])


class Conditional(nn.Module):
    """A preconditioned network: elementwise, so that batches of any size give the same bits."""

    def forward(self, x: Tensor, t: Tensor, condition: Any = None, **kwargs: Any) -> Tensor:
        assert t.shape == (len(x),) and t.is_contiguous()
        added = condition if isinstance(condition, Tensor) else condition["a"] + condition["b"]
        return x / (1.0 + t.reshape(-1, 1, 1, 1) ** 2) + 0.1 * added


class Legacy(nn.Module):
    """EDMPrecond's convention."""

    def forward(self, x: Tensor, sigma: Tensor, condition: Any = None, class_labels: Any = None) -> Tensor:
        labels = 0.0 if class_labels is None else class_labels.sum(1).reshape(-1, 1, 1, 1)
        return x / (1.0 + sigma.reshape(-1, 1, 1, 1) ** 2) + 0.1 * condition + labels


class Super(nn.Module):
    """EDMPrecondSuperResolution's."""

    def forward(self, x: Tensor, img_lr: Tensor, sigma: Tensor, force_fp32: bool = False) -> Tensor:
        return x / (1.0 + sigma.reshape(-1, 1, 1, 1) ** 2) + 0.1 * img_lr


def test_every_convention_is_called_as_it_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler, image = science.EDMNoiseScheduler(), science.normals(1, 2, 2).float()

    def draw(net: Any, shape: Any, cond: Any) -> Tensor:
        model = from_physicsnemo(net, scheduler, science.SHAPE, cond_shape=shape)
        return Sampler(model, steps=4, batch=2).run(range(2), cond=cond)

    expected = draw(Conditional(), (1, 2, 2), image)
    for net in (Legacy(), Super(), nn.DataParallel(Conditional(), device_ids=None)):
        assert draw(net, (1, 2, 2), image).equal(expected)
    shapes, labels = {"condition": (1, 2, 2), "class_labels": (3,)}, torch.zeros(3)
    assert draw(Legacy(), shapes, {"condition": image, "class_labels": labels}).equal(expected)
    assert draw(Super(), {"img_lr": (1, 2, 2)}, {"img_lr": image}).equal(expected)
    stand_in = ModuleType("tensordict")
    stand_in.TensorDict = lambda cond, batch_size: dict(cond)  # pyright: ignore
    monkeypatch.setitem(sys.modules, "tensordict", stand_in)
    halves = draw(Conditional(), {"a": (1, 2, 2), "b": (1, 2, 2)}, {"a": 0.25 * image, "b": 0.75 * image})
    assert torch.allclose(halves, expected)
    monkeypatch.setitem(sys.modules, "tensordict", None)
    with pytest.raises(ImportError, match="pip install tensordict") as missing:
        draw(Conditional(), {"a": (1, 2, 2), "b": (1, 2, 2)}, {"a": image, "b": image})
    assert missing.value.name == "tensordict"


def test_residual_around_a_mean() -> None:
    scheduler, model = exact("edm")
    mean = 10.0 * science.normals(*science.SHAPE).float()
    around = from_physicsnemo(science.Exact(scheduler), scheduler, science.SHAPE, mean=mean)
    a, b = (Sampler(m, solver="heun", steps=6, batch=2) for m in (model, around))
    assert b.run(range(3)).equal(a.run(range(3)) + mean)
    state = mean + 3.0
    c, d = (Sampler(m, steps=6, batch=2, start="data") for m in (model, around))
    assert torch.allclose(d.run(range(2), init=state), c.run(range(2), init=state - mean) + mean, atol=1e-4)
    seen: list[Tensor] = []

    def guide(denoise: Any, x: Tensor, alpha: Tensor, sigma: Tensor, y: Any) -> Tensor:
        seen.extend([x, denoise(x)])
        return seen[-1]

    guided = Sampler(around, steps=6, batch=2, guide=guide).run(range(2))  # by nothing
    assert torch.allclose(guided, Sampler(around, steps=6, batch=2).run(range(2)), atol=1e-3)
    for state in seen[-2:]:  # a guide sees the field, not the residual
        assert float((state.mean(0) - mean).abs().max()) < 3.0
    with pytest.raises(ValueError, match=r"mean has shape \(2, 2\)"):
        from_physicsnemo(science.Exact(scheduler), scheduler, science.SHAPE, mean=mean[0])


def test_what_is_refused() -> None:
    scheduler = science.EDMNoiseScheduler()
    with pytest.raises(ValueError, match="predicts = 'v' must be one of x0, score, epsilon, ode"):
        from_physicsnemo(science.Exact(scheduler), scheduler, science.SHAPE, predicts="v")
    with pytest.raises(ValueError, match=r"called as \(x, t, y\) is no network of PhysicsNeMo"):
        from_physicsnemo(lambda x, t, y: x, scheduler, science.SHAPE)
    student = type("StudentTEDMNoiseScheduler", (science.EDMNoiseScheduler,), {"nu": 10})()
    with pytest.raises(ValueError, match="its noise is Student's t"):
        from_physicsnemo(science.Exact(student), student, science.SHAPE)
    with pytest.raises(ValueError, match="object has no alpha, sigma"):
        from_physicsnemo(science.Exact(scheduler), object(), science.SHAPE)
    with pytest.raises(ValueError, match="steps = 1 must be at least 2"):
        times(scheduler, 1)
    model = from_physicsnemo(science.Exact(scheduler), scheduler, science.SHAPE, cond_shape=(1,))
    with pytest.raises(ValueError, match=r"called as \(x, t\) and takes no condition"):
        Sampler(model, steps=2, batch=1).run([0], cond=torch.zeros(1))
    assert model.schedule == EDM(0.002, 80.0) and isinstance(Sampler(model, steps=2).solver, DPMpp2M)
