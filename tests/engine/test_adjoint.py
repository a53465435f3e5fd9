"""Gradients through the probability flow: closed forms, finite differences, and what backward may not touch."""

from __future__ import annotations

import math
import weakref

import pytest
import torch
from gated import one_in
from torch import nn

from fastscore.flow import ProbabilityFlow
from fastscore.model import analytic
from fastscore.model.nets.transformer import Transformer
from fastscore.model.score import ScoreModel
from fastscore.ops.noise import NoiseKey
from fastscore.process.continuous import EDM, VE, VP, Flow, SubVP
from fastscore.process.grid import Span, uniform
from fastscore.process.parametrization import Parametrization
from fastscore.solvers import RK2, RK4, BogackiShampine, Dopri5, Euler, Heun

SCHEDULES = [VP(), SubVP(), VE(), EDM(), Flow()]
SHARP = Dopri5(1e-7, 1e-7)


def normals(n: int, d: int, draw: int = 900) -> torch.Tensor:
    return NoiseKey.of(3, range(n)).normal(draw, d, torch.float64)


def flow(model: ScoreModel, **kw) -> ProbabilityFlow:
    return ProbabilityFlow(model, **{"dtype": torch.float64, "batch": 4, "solver": SHARP, **kw})


def gradient(function, x: torch.Tensor) -> torch.Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0]


def differences(function, x: torch.Tensor, direction: torch.Tensor, h: float = 1e-2) -> torch.Tensor:
    """Return the derivative of each sample's value along a direction, to O(h^4)."""
    with torch.no_grad():
        f = {k: function(x + k * h * direction) for k in (-2, -1, 1, 2)}
    return (8.0 * (f[1] - f[-1]) - (f[2] - f[-2])) / (12.0 * h)


class Net(nn.Module):
    """A small smooth network with labels, conditions of its own, dropout and parameters."""

    def __init__(self, d: int, classes: int = 0, width: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inside, self.out = nn.Linear(d + 1, width), nn.Linear(width, d)
        self.label = nn.Embedding(classes + 1, width)
        self.dropout = nn.Dropout(0.5)
        self.double()

    def forward(self, u, t, cond):
        h = self.inside(torch.cat([u.flatten(1), t[:, None].to(u)], 1))
        if cond is not None:
            h = h + self.label(cond)
        return self.out(self.dropout(torch.tanh(h))).view_as(u)


def small(shape: tuple[int, ...] = (3,), classes: int = 0) -> ScoreModel:
    return ScoreModel(
        Net(math.prod(shape), classes), shape, VP(), Parametrization("v", "t"), classes=classes, null=classes or None
    )


@pytest.mark.slow
def test_at_one_on_a_gaussian_of_variance_a_quarter():
    f = flow(analytic.score_model(analytic.gaussian(0.0, 0.5, (1,))))
    one = torch.ones(1, 1, dtype=torch.float64)
    assert float(gradient(lambda x: f.log_likelihood(x).nats, one)) == pytest.approx(-4.0, abs=1e-6)
    assert float(gradient(f.encode, one)) == pytest.approx(2.0, abs=1e-6)
    assert float(gradient(f.decode, one)) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(
    "schedule",
    [pytest.param(s, id=type(s).__name__, marks=() if s == EDM() else pytest.mark.slow) for s in SCHEDULES],
)
def test_gaussians_have_their_closed_form(schedule):
    """d ln p / dx = -(x - mu) / s^2, and encoding is x_T = m_T + (s_T / s) (x - m): mean 0, so the prior knows it."""
    f = flow(analytic.score_model(analytic.gaussian(0.0, 0.4, (2,))), schedule=schedule)
    x, ends = 0.4 * normals(4, 2), f.grid(schedule)
    s_T, s = (math.hypot(0.4 * float(schedule.alpha(t)), float(schedule.sigma(t))) for t in (ends[0], ends[-1]))
    score = gradient(lambda v: f.log_likelihood(v).nats, x)
    # The latent's density is the prior's, of std prior_std: the model's own density of x.
    exact = -x * (s_T / s / schedule.prior_std) ** 2
    assert float((score - exact).abs().max()) < 1e-6 * float(exact.abs().max())
    assert float((exact * 0.16 + x).abs().max()) < 2e-3  # which is that of the data
    for function, slope, at in ((f.encode, s_T / s, x.clone()), (f.decode, s / s_T, s_T / s * x)):
        at.requires_grad_()
        weight, result = normals(4, 2, 901), function(at)
        (found,) = torch.autograd.grad(result, at, weight)
        assert float((found - slope * weight).abs().max()) < 1e-6 * slope
        assert torch.allclose(result, slope * at, rtol=1e-6)


@pytest.mark.parametrize(
    "solver", [Heun(), *(pytest.param(s, marks=pytest.mark.slow) for s in (Euler(), RK2(2 / 3), RK4()))], ids=str
)
def test_on_a_fixed_grid_the_gradient_is_that_of_the_steps(solver):
    """A linear score makes a linear map, whatever its error: its slope is a difference of two of its values."""
    grid = uniform(5, start=2.0, end=0.2)
    f = flow(analytic.score_model(analytic.gaussian(0.3, 0.6, (2,))), schedule=EDM(), solver=solver, grid=grid)
    x, step = normals(6, 2), normals(6, 2, 901)
    for function in (f.encode, f.decode):
        slope = (function(x + step) - function(x)) / step
        assert torch.allclose(gradient(function, x), slope, rtol=1e-10)
    second = differences(lambda v: f.log_likelihood(v).nats, x, step)
    assert torch.allclose((gradient(lambda v: f.log_likelihood(v).nats, x) * step).sum(1), second, rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "probe"),
    one_in(
        2,
        [("adaptive", "exact"), ("fixed", "exact"), ("fixed", "rademacher"), ("fixed", "gaussian"),
         ("adaptive", "rademacher")],
    ),
)  # fmt: skip
def test_a_network_against_finite_differences(kind, probe):
    """Every sample with a label, a probe and steps of its own; 6 samples in lanes of 4."""
    adaptive = {"solver": Dopri5(1e-9, 1e-9), "grid": Span(start=0.6, end=0.4)}
    f = flow(small((3,), 4), **(adaptive if kind == "adaptive" else {"solver": RK4(), "grid": uniform(4, end=0.01)}))
    x, step = normals(6, 3), normals(6, 3, 901)
    labels, probes = torch.tensor([0, 1, 2, 3, 4, 0]), 1 if probe == "exact" else 2

    def nats(v: torch.Tensor) -> torch.Tensor:
        return f.log_likelihood(v, probe=probe, probes=probes, labels=labels, seed=2).nats

    slope = (gradient(nats, x) * step).sum(1)
    assert torch.allclose(slope, differences(nats, x, step), rtol=1e-6, atol=1e-6)
    alone = gradient(lambda v: f.log_likelihood(v, probe=probe, probes=probes, labels=3, seed=2, ids=[3]).nats, x[3:4])
    assert torch.allclose(alone, gradient(nats, x)[3:4], rtol=1e-9)

    if probe != "exact":
        return

    def ends(v: torch.Tensor) -> torch.Tensor:
        encoded = f.encode(v, labels=labels)
        return (encoded * f.decode(encoded + 0.1, labels=labels)).sum(1)  # one through the other

    assert torch.allclose((gradient(ends, x) * step).sum(1), differences(ends, x, step), rtol=1e-6, atol=1e-6)


def test_the_result_is_the_same_to_the_bit_and_carries_no_gradient_where_none_is_asked_for():
    f, x = flow(small(), solver=BogackiShampine()), normals(5, 3)
    plain, tracked = f.log_likelihood(x), f.log_likelihood(x.clone().requires_grad_())
    assert torch.equal(plain.nats, tracked.nats) and torch.equal(plain.latent, tracked.latent)
    assert tracked.nats.requires_grad and tracked.latent.requires_grad
    assert not plain.nats.requires_grad  # parameters alone do not ask for one
    with torch.no_grad():
        assert not f.encode(x.clone().requires_grad_()).requires_grad
    single = ProbabilityFlow(analytic.score_model(analytic.gaussian(0.0, 0.5, (3,))), batch=4)
    assert gradient(single.encode, x.float()).dtype == torch.float32
    assert f.encode(torch.zeros(0, 3, dtype=torch.float64, requires_grad=True)).shape == (0, 3)


@pytest.mark.slow
def test_backward_leaves_the_network_as_it_is():
    """In training mode with dropout 0.5, and trained between the two passes' calls of another run."""
    model = small()
    net, x = model.net, normals(5, 3)
    f = flow(model, solver=BogackiShampine(1e-4, 1e-4))
    expected = gradient(lambda v: f.log_likelihood(v).nats, x)
    net.train()
    leaf = x.clone().requires_grad_()
    result = f.log_likelihood(leaf)
    f.encode(x[:2])  # another run in between
    result.nats.sum().backward()
    assert torch.equal(leaf.grad, expected)
    assert net.training and net.dropout.training
    assert all(p.grad is None for p in net.parameters())


def test_backward_keeps_one_graph_and_the_points():
    """Bytes held for backward, by the hidden layer of a wide network: one evaluation's, not one a step."""
    width, n = 4096, 4
    model = ScoreModel(Net(3, width=width), (3,), VP(), Parametrization("v", "t"))
    f = flow(model, solver=RK4(), grid=uniform(12, end=0.01))
    held, peak = weakref.WeakSet(), 0

    class Kept:
        def __init__(self, tensor):
            self.tensor = tensor

    def pack(tensor):
        nonlocal peak
        kept = Kept(tensor)
        if tensor.numel() >= n * width and not isinstance(tensor, nn.Parameter):
            held.add(kept)
            peak = max(peak, len(held))
        return kept

    x = normals(n, 3).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        f.encode(x).sum().backward()
        one, peak = peak, 0
        f.log_likelihood(x, probe="rademacher").nats.sum().backward()
    assert 1 <= one <= 8  # 48 evaluations keep as many as one does
    assert peak <= 30


def test_attention_has_second_derivatives_too():
    net = Transformer(3, 2, width=8, depth=1, heads=2).double()
    for k, p in enumerate(net.parameters()):
        p.data += 0.2 * torch.sin(torch.arange(p.numel(), dtype=torch.float64) + k).view_as(p)
    f = flow(ScoreModel(net, (3, 2), VP(), Parametrization("v", "t")), solver=RK4(), grid=uniform(4, end=0.01))
    x, step = (normals(3, 6, k).view(3, 3, 2) for k in (900, 901))

    def nats(v: torch.Tensor) -> torch.Tensor:
        return f.log_likelihood(v, probe="rademacher").nats

    slope = (gradient(nats, x) * step).flatten(1).sum(1)
    assert torch.allclose(slope, differences(nats, x, step), rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.nightly
def test_a_compiled_network_is_differentiated_as_it_was_written():
    model, x = small(), normals(4, 3)
    own, compiled = (flow(model, network=network, solver=BogackiShampine()) for network in ("own", "compile"))
    for function in (lambda f, v: f.encode(v), lambda f, v: f.log_likelihood(v).nats):
        a, b = (gradient(lambda v, f=f, g=function: g(f, v), x) for f in (own, compiled))
        assert torch.allclose(a, b, rtol=1e-9)


def test_what_has_no_gradient_raises():
    f = flow(small(), solver=BogackiShampine())
    x = normals(2, 3).requires_grad_()
    with pytest.raises(ValueError, match="differentiable once; leave create_graph out"):
        torch.autograd.grad(f.encode(x).sum(), x, create_graph=True)
    cut = ScoreModel(lambda u, t, cond: torch.tanh(u.detach()), (3,), VP(), Parametrization("v", "t"))
    with pytest.raises(ValueError, match="in a way that can be differentiated"):
        gradient(flow(cut, solver=BogackiShampine()).encode, normals(2, 3))  # never half a gradient
