"""Rules over both estimates against the papers, on shapes and schedules of every kind; what each of them refuses."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import textbook_guidance as book
import torch

from fastscore.engine.picard import Picard
from fastscore.engine.stepper import Stepper
from fastscore.guidance.chain import Chain
from fastscore.guidance.denoiser import Pair
from fastscore.guidance.mixture import Guidance
from fastscore.guidance.rules import APG, MAMBOG, TCFG, CFGNorm, CFGRescale, CFGZeroStar
from fastscore.guidance.spaces import SPACES, Space
from fastscore.guidance.thresholds import DynamicThreshold, Quantile, StaticThreshold
from fastscore.model.score import ScoreModel
from fastscore.ops.noise import NoiseKey
from fastscore.process.continuous import EDM, VP, Flow, Trig
from fastscore.process.grid import Grid, Span, karras, logsnr, uniform
from fastscore.process.parametrization import Parametrization
from fastscore.sampler import Sampler
from fastscore.solvers import DDIM, Churn, Dopri5, DPMpp2M, Euler, Heun, RePaint

IMAGE, TOKENS, POINT = (3, 4, 5), (6, 4), (2,)
RULES = {
    "apg": (APG(0.3, 2.0, -0.6), lambda p, u, w, s: book.apg(p, u, w, s, 0.3, 2.0, -0.6)),
    "apg-plain": (APG(), book.apg),
    "apg-diffusers": (
        APG(0.5, 1.5, 0.25, "eps", "diffusers"),
        lambda p, u, w, s: book.apg(p, u, w, s, 0.5, 1.5, 0.25, "diffusers"),
    ),
    "apg-comfyui": (
        APG(0.2, 2.0, -0.5, "flow", "comfyui"),
        lambda p, u, w, s: book.apg(p, u, w, s, 0.2, 2.0, -0.5, "comfyui"),
    ),
    "zero-star": (CFGZeroStar(0), book.cfg_zero_star),
    "zero-star-v": (CFGZeroStar(0, "v"), book.cfg_zero_star),
    "tcfg": (TCFG(), book.tcfg),
    "tcfg-flow": (TCFG("flow"), book.tcfg),
    "norm": (CFGNorm(0.9), lambda p, u, w, s: book.cfg_norm(p, u, w, s, 0.9)),
    "norm-last-v": (CFGNorm(axis=-1, space="v"), lambda p, u, w, s: book.cfg_norm(p, u, w, s, axis=-1)),
    "mambo": (MAMBOG(1.5), lambda p, u, w, s: book.mambo(p, u, w, s, 1.5)),
    "rescale-eps": (CFGRescale(0.4, "eps"), lambda p, u, w, s: book.rescale(p, u, w, s, 0.4)),
    "rescale-x0": (CFGRescale(), book.rescale),
}  # fmt: skip


def estimates(x, alpha, sigma):
    """Two estimates of x_0 that no affine map relates, conditional and not; of arrays or tensors."""
    own = 0.6 + alpha / (alpha**2 + sigma**2) * (x - 0.6 * alpha)
    return own, 1.5 * own / (1.0 + own * own) - 0.3


def model(shape, prediction="x0") -> ScoreModel:
    def net(u, t, cond):
        t, label = (v.to(u).reshape(-1, *[1] * (u.ndim - 1)) for v in (t, cond))
        alpha, sigma = torch.cos(t), torch.sin(t)
        own, null = estimates(u, alpha, sigma)
        D = torch.where(label == 1, null, own)
        return {"x0": D, "v": (alpha * u - D) / sigma}[prediction]

    return ScoreModel(net, shape, Trig(), Parametrization(prediction, "t"), classes=1, null=1)


def sampler(shape, guide, weight: float = 3.0, schedule=None, batch=4, prediction="x0", interval=(0.0, np.inf), **kw):
    kw = {"solver": DDIM(), "grid": logsnr(5), "dtype": torch.float64, "schedule": schedule or VP()} | kw
    guidance = Guidance(weight, interval)
    return Sampler(model(shape, prediction), guidance=guidance, guide=guide, batch=batch, **kw)


def check_run(guide, rule, shape, schedule, weight, solver, interval=(0.0, np.inf)):
    """Compare the estimate of every evaluation of a run with the rule of the paper at the same state."""
    steps, seen = [], 0
    grid = karras(5) if isinstance(schedule, EDM) else logsnr(5, start=0.99)
    sampler(shape, guide, weight, schedule, solver=solver, grid=grid, interval=interval, prediction="v").run(
        range(3), labels=0, callback=steps.append
    )
    states = [dict[str, np.ndarray]() for _ in range(3)]
    for before, step in pairwise(steps):
        if step.x0 is None:
            continue
        alpha, sigma = float(schedule.alpha(step.t)), float(schedule.sigma(step.t))
        for k in range(3):
            x, space = before.x[k].numpy(), guide.space
            own, null = estimates(x, alpha, sigma)
            wanted = own
            if interval[0] < sigma / alpha <= interval[1] and weight != 1.0:
                p, u = (book.in_space(space, D, x, alpha, sigma) for D in (own, null))
                wanted = book.to_x0(space, rule(p, u, weight, states[k]), x, alpha, sigma)
            size = np.abs(wanted).max() + np.abs(x).max() / alpha
            assert np.abs(step.x0[k].numpy() - wanted).max() < 1e-10 * size, (guide, shape, schedule, step.t)
            seen += 1
    assert seen >= 15


@pytest.mark.thirds
@pytest.mark.parametrize("name", RULES)
def test_the_estimate_is_that_of_the_paper(name):
    guide, rule = RULES[name]
    check_run(guide, rule, IMAGE, VP(), 3.0, DDIM())
    check_run(guide, rule, TOKENS, EDM(), -0.5, Heun(), (0.05, 20.0))


def sliced(rule):
    """A rule of each slice along the first axis, with a state of its own."""

    def each(p, u, w, state):
        parts = [rule(p[k], u[k], w, state.setdefault(k, {})) for k in range(len(p))]
        return np.stack(parts)

    return each


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_the_estimate_is_that_of_the_paper_everywhere(name):
    guide, rule = RULES[name]
    for shape in (IMAGE, TOKENS, POINT, (2, 3, 4, 2)):
        slices = name == "apg-comfyui" and len(shape) > 3  # norms over the last three axes, each slice alone
        for schedule in (VP(), EDM(), Flow(t_end=1e-3)):
            for weight in (0.0, 7.5):
                solver = Euler() if weight else DPMpp2M()
                check_run(guide, sliced(rule) if slices else rule, shape, schedule, weight, solver, (0.0, 30.0))


def test_spaces_are_those_of_parametrizations():
    """What a network of a prediction would say, and back, at any level and in units of columns."""
    x, D = (NoiseKey.of(k, range(4)).normal(0, 6, torch.float64) for k in (1, 2))
    alpha, sigma = (torch.tensor(v).double()[:, None] for v in ([0.9, 0.5, 1.0, 0.05], [0.3, 0.5, 4.0, 2.0]))
    for name in SPACES:
        space = Space.at(name, x, alpha, sigma)
        G = space.of(D)
        for k in range(4):
            wanted = book.in_space(name, D[k].numpy(), x[k].numpy(), float(alpha[k]), float(sigma[k]))
            assert np.allclose(G[k].numpy(), wanted, rtol=1e-13, atol=1e-13)
        assert torch.allclose(space.estimate(G), D, rtol=1e-11, atol=1e-11)


def test_rules_that_reduce_to_the_mixture_or_to_one_another():
    plain = sampler(IMAGE, None).run(range(3), labels=0)
    for guide in (APG(1.0), APG(1.0, space="eps"), APG(1.0, form="diffusers"), MAMBOG(0.0), CFGRescale(0.0, "v")):
        assert torch.allclose(sampler(IMAGE, guide).run(range(3), labels=0), plain, rtol=1e-9, atol=1e-9), guide
    more = sampler(IMAGE, APG(0.3, 2.0, -0.5), 4.0).run(range(3), labels=0)  # ComfyUI's has one unit of weight more
    assert torch.allclose(sampler(IMAGE, APG(0.3, 2.0, -0.5, form="comfyui")).run(range(3), labels=0), more, rtol=1e-9)
    own = sampler(IMAGE, None, 1.0).run(range(3), labels=0)
    for guide, _ in RULES.values():
        one = sampler(IMAGE, guide, 1.0).run(range(3), labels=0)
        assert torch.allclose(one, own, rtol=1e-9, atol=1e-9), guide
        outside = sampler(IMAGE, guide, 3.0, interval=(1e6, 1e7)).run(range(3), labels=0)
        assert torch.equal(one, outside), guide


def test_a_rule_of_two_networks_that_predict_different_things():
    """D_2 of an EDM network beside a v-prediction: each by coefficients of its own, neither as a difference."""

    def edm(u, c_noise, cond):
        sigma = torch.exp(4.0 * c_noise.double()).reshape(-1, 1)
        norm = (sigma**2 + 0.81).sqrt()
        x = u * norm
        return (estimates(x, torch.ones_like(sigma), sigma)[1] - 0.81 / norm**2 * x) / (sigma * 0.9 / norm)

    worse = ScoreModel(edm, POINT, EDM(1e-4, 200.0), Parametrization("edm", "log_sigma/4", 0.9))
    kw = {"schedule": VP(), "solver": DPMpp2M(), "grid": logsnr(5), "dtype": torch.float64, "batch": 4}
    for guide in (APG(0.3, 1.0, -0.4), MAMBOG(1.0), CFGRescale(0.5, "eps")):
        x = Sampler(model(POINT, "v"), guidance=Guidance(2.0, model=worse), guide=guide, **kw).run(range(3), labels=0)
        own = worse_by_class(POINT)
        y = Sampler(own, guidance=Guidance(2.0), guide=guide, **kw).run(range(3), labels=0)
        assert torch.allclose(x, y, rtol=1e-8, atol=1e-8), guide


def worse_by_class(shape):
    """The two estimates as an EDM network has them: a function of x / alpha alone."""

    def net(u, t, cond):
        t, label = (v.to(u).reshape(-1, 1) for v in (t, cond))
        alpha, sigma = torch.cos(t), torch.sin(t)
        own, _ = estimates(u, alpha, sigma)
        _, null = estimates(u / alpha, torch.ones_like(alpha), sigma / alpha)
        return torch.where(label == 1, null, own)

    return ScoreModel(net, shape, Trig(), Parametrization("x0", "t"), classes=1, null=1)


def test_first_steps_stand_still():
    """Velocity 0 of flow matching leaves x / (alpha + sigma); in eps, as diffusers feeds it, x / alpha."""
    for space, length in (("flow", lambda a, s: a + s), ("eps", lambda a, s: a)):
        for schedule in (VP(), EDM()):
            steps = []
            run = sampler(POINT, CFGZeroStar(2, space), schedule=schedule, grid=karras(5), solver=DPMpp2M())
            run.run(range(3), labels=0, callback=steps.append)
            still = [step.x / length(float(schedule.alpha(step.s)), float(schedule.sigma(step.s))) for step in steps]
            assert torch.allclose(still[1], still[0], rtol=1e-9)
            assert torch.allclose(still[2], still[0], rtol=1e-9)
            assert not torch.allclose(still[3], still[0], rtol=1e-2)
    heun = []
    sampler(POINT, CFGZeroStar(1), solver=Heun()).run(range(3), labels=0, callback=heun.append)  # both stages of a step
    assert torch.allclose(heun[1].x0, heun[0].x / (float(VP().alpha(heun[1].t)) + float(VP().sigma(heun[1].t))))
    alone = sampler(POINT, CFGZeroStar(1), 1.0).run(range(3), labels=0)
    assert not torch.allclose(alone, sampler(POINT, None, 1.0).run(range(3), labels=0), rtol=1e-2)  # at any weight


def test_momentum_belongs_to_one_run_and_one_sample():
    """No trace of the run before, of the company, the micro-batch, or of a copy; and it has an effect."""
    guide = APG(0.0, 2.0, -0.75)
    one = sampler(IMAGE, guide)
    x = one.run(range(7), labels=0)
    assert torch.equal(one.run(range(7), labels=0), x)
    assert torch.equal(one.run([5, 2], labels=0), x[[5, 2]])
    assert torch.equal(sampler(IMAGE, guide, batch=7).run(range(7), labels=0), x)
    assert torch.equal(torch.cat([v for _, v in sampler(IMAGE, guide, batch=2).stream(range(7), labels=0)]), x)
    assert not torch.allclose(sampler(IMAGE, APG(0.0, 2.0)).run(range(7), labels=0), x, rtol=1e-3)
    assert vars(guide) == vars(APG(0.0, 2.0, -0.75))  # nothing on the caller's object


def test_rules_in_a_chain():
    """A rescale after a rule takes the network's own estimate for its goal, as diffusers' guiders do; then a bound."""
    x = torch.zeros(2, 8, dtype=torch.float64)
    own, null = (NoiseKey.of(k, range(2)).normal(0, 8, torch.float64) for k in (1, 2))
    level = torch.full((2, 1), 0.5, dtype=torch.float64)

    class Both:
        def __init__(self):
            self.memory = {}

        def both(self, at):
            return null + 3.0 * (own - null), own

        def pair(self, at):
            return Pair(own, null, torch.full((2, 1), 3.0, dtype=torch.float64), torch.zeros(2, 1))

    chain = Chain((APG(0.2, 1.0), CFGRescale(0.6), StaticThreshold(0.8)))
    for k in range(2):
        g = book.apg(own[k].numpy(), null[k].numpy(), 3.0, {}, 0.2, 1.0)
        wanted = 0.6 * g * own[k].numpy().std(ddof=1) / g.std(ddof=1) + 0.4 * g
        found = chain(Both(), x, level, level, None)[k].numpy()
        assert np.allclose(found, wanted.clip(-0.8, 0.8), rtol=1e-12)
    before, bound = chain.bounding
    assert torch.equal(bound(before(Both(), x, level, level, None)), chain(Both(), x, level, level, None))
    with pytest.raises(ValueError, match=r"TCFG makes one estimate of both.*put it first"):
        Chain((StaticThreshold(), TCFG()))
    with pytest.raises(ValueError, match="put it first"):
        Chain((CFGRescale(), Chain((APG(),))))


@pytest.mark.slow
def test_picard_and_adaptive_solvers_take_what_has_no_memory():
    for guide in (APG(0.2, 2.0), CFGZeroStar(1), TCFG(), CFGNorm(), MAMBOG(), CFGRescale(0.5, "eps")):
        kw = {"interval": (0.05, 3.0), "grid": logsnr(6)}
        swept = sampler(POINT, guide, parallel=Picard(3), **kw).run(range(3), labels=0)
        assert torch.equal(swept, sampler(POINT, guide, **kw).run(range(3), labels=0)), guide
    for guide in (APG(0.2, 2.0), CFGZeroStar(0), MAMBOG()):
        kw = {"solver": Dopri5(1e-5, 1e-5), "grid": Span(end=0.05, clean=False), "weight": 1.5}
        exact = sampler(POINT, guide, **kw).run(range(3), labels=0)
        grid = logsnr(100, end=0.05, clean=False)
        fine = sampler(POINT, guide, solver=Heun(), grid=grid, weight=1.5).run(range(3), labels=0)
        assert torch.allclose(exact, fine, atol=1e-3), guide
        assert torch.equal(sampler(POINT, guide, batch=2, **kw).run([2], labels=0), exact[2:])


def test_a_bound_leaves_eps_to_solvers_that_keep_it():
    """D' = bound(D) in DDIM's first term, eps of D in its second; without keep_eps eps is that of D'."""
    schedule, solver = VP(), DDIM(keep_eps=True)
    for guide in (
        StaticThreshold(0.5),
        DynamicThreshold(0.8, 0.5),
        Quantile(0.8, 1.3),
        Chain((APG(), Quantile(0.8, 1.3))),
    ):
        steps = []
        run = sampler(IMAGE, guide, schedule=schedule, solver=solver)
        x = run.run(range(3), labels=0, callback=steps.append)
        level = steps[0]
        rule = book.apg if isinstance(guide, Chain) else lambda p, u, w, s: u + w * (p - u)
        bound = guide.bounding[1]
        ends = sorted({step.s for step in steps}, reverse=True)
        state = level.x
        for t, s in pairwise(ends):
            alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
            D = torch.stack([torch.from_numpy(rule(*estimates(v.numpy(), alpha, sigma), 3.0, {})) for v in state])
            eps = (state - alpha * D) / sigma
            state = float(schedule.alpha(s)) * bound(D) + float(schedule.sigma(s)) * eps
        assert torch.allclose(x, state, rtol=1e-9, atol=1e-9), guide
        other = []
        sampler(IMAGE, guide, schedule=schedule).run(range(3), labels=0, callback=other.append)
        halfway = {step.s: step.x for step in steps}[other[3].s]
        assert not torch.allclose(other[3].x, halfway, atol=1e-2)
        swept = sampler(IMAGE, guide, schedule=schedule, solver=solver, parallel=Picard(2)).run(range(3), labels=0)
        assert torch.equal(swept, x)
        assert run.plan.nfe == sampler(IMAGE, guide, schedule=schedule).plan.nfe


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: APG(norm=0.0), "norm = 0.0 must be positive"),
        (lambda: APG(momentum=1.0), "momentum = 1.0 between -1 and 1"),
        (lambda: APG(space="score"), "space = 'score' must be one of x0, eps, flow, v"),
        (lambda: APG(form="comfy"), "form = 'comfy' must be"),
        (lambda: CFGZeroStar(-1), "zero_steps = -1"),
        (lambda: CFGZeroStar(form="comfyui", space="x0"), "goes with space 'eps' or 'flow'"),
        (lambda: CFGNorm(0.0), "strength = 0.0 must be positive"),
        (lambda: sampler(POINT, CFGNorm(axis=1)).run([0], labels=0), "axis = 1 is none of a sample"),
        (lambda: MAMBOG(-1.0), "damping = -1.0"),
        (lambda: CFGRescale(space="F"), "space = 'F'"),
        (lambda: Sampler(model(POINT), guide=APG()), "APG makes one estimate of both.*guidance=Guidance"),
        (lambda: sampler(POINT, APG(momentum=-0.5), parallel=Picard(2)), "Picard sweeps over them again"),
        (lambda: sampler(POINT, APG(momentum=-0.5), solver=Dopri5(), grid=None), "an adaptive solver tries steps"),
        (lambda: sampler(POINT, APG(momentum=-0.5), solver=RePaint(jump=2, times=2)), "goes back up"),
        (lambda: sampler(POINT, Chain((APG(momentum=-0.5), Quantile())), parallel=Picard(2)), "Picard sweeps"),
        (lambda: sampler(POINT, CFGZeroStar(), solver=Dopri5(), grid=None), "zero_steps counts a grid's steps"),
        (lambda: sampler(POINT, TCFG(), schedule=Flow(), grid=uniform(4)), "eps says nothing.*space='flow'"),
        (
            lambda: Sampler(model(POINT), guidance=Guidance((2.0, -2.0)), guide=APG()),
            "sum to 0, which leaves no conditional estimate",
        ),
        (
            lambda: Stepper(DDIM(), uniform(4), (2,), 1, schedule=VP(), guide=APG()),
            "makes one estimate of both that guidance evaluates, and there is none",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_pure_noise_and_churn():
    """Every space but eps exists at alpha = 0, and momentum takes a solver whose levels fall, churned ones too."""
    for guide in (APG(0.2, 2.0, -0.5), CFGZeroStar(), TCFG("flow"), CFGNorm(space="v"), MAMBOG()):
        for prediction in ("x0", "v"):
            run = sampler(POINT, guide, schedule=Flow(), grid=uniform(5), prediction=prediction)
            assert run.run(range(3), labels=0).isfinite().all(), guide
    churned = sampler(POINT, APG(momentum=-0.5), schedule=EDM(), solver=Churn(Euler(), 2.0), grid=karras(5))
    assert churned.run(range(3), labels=0).isfinite().all()
    assert isinstance(churned.grid, Grid)
