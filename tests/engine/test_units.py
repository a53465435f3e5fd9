"""A model with a transform is the same law in other units: everything a caller sees or gives is in those."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import fastscore as fs
from fastscore import chains
from fastscore.data.affine import Affine
from fastscore.guidance.measurements import Masked
from fastscore.model.analytic import GaussianMixture
from fastscore.model.coordinates import Diagonal, in_basis
from fastscore.model.folder import load_model, save_model
from fastscore.model.nets import build

UNITS = Affine((5000.0, 0.2), (1000.0, 2e-3))  # whose product is not 1
Y = fs.score_model(
    GaussianMixture(
        torch.ones(1, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    )
)
X = replace(Y, transform=UNITS)
PLAIN = {"schedule": fs.VP(), "steps": 6, "batch": 4}


@pytest.mark.thirds
@pytest.mark.parametrize("solver", ["dpmpp-2m", "em", "dopri5"])
def test_samples_states_and_estimates_are_in_the_units_of_the_data(solver):
    settings = PLAIN if solver != "dopri5" else {"schedule": fs.VP(), "batch": 4}
    y, x = (fs.Sampler(model, solver=solver, **settings) for model in (Y, X))
    assert torch.equal(x.run(range(6)), UNITS(y.run(range(6))))
    for (_, a), (_, b) in zip(y.stream(range(6)), x.stream(range(6)), strict=True):
        assert torch.equal(UNITS(a), b)
    paths = [fs.trajectory(sampler, range(6)) for sampler in (y, x)]
    assert torch.equal(UNITS(paths[0].states).nan_to_num(), paths[1].states.nan_to_num())
    if paths[0].x0 is not None:
        assert torch.equal(UNITS(paths[0].x0), paths[1].x0)
    assert x.record()["transform"] == {"shift": UNITS.shift, "scale": UNITS.scale}
    assert "transform" not in y.record()


def test_starts_and_known_data_are_in_the_units_of_the_data():
    data = torch.tensor([5500.0, 0.2005])
    for start in ("data", "state"):
        grid = fs.uniform(4, start=0.5)
        y, x = (fs.Sampler(m, schedule=fs.VP(), grid=grid, start=start, batch=4) for m in (Y, X))
        assert torch.equal(x.run(range(3), init=data), UNITS(y.run(range(3), init=UNITS.inverse(data))))
    mask = torch.tensor([True, False])
    known = fs.Sampler(X, solver="em", **PLAIN).run(range(5), known=fs.Known(torch.tensor([6000.0, math.nan]), mask))
    assert (known[:, 0] - 6000.0).abs().max() < 1e-2
    assert len(set(known[:, 1].tolist())) == 5


def test_likelihoods_have_the_jacobian_and_latents_come_back():
    x = torch.from_numpy(np.random.default_rng(0).normal(UNITS.shift, UNITS.scale, (6, 2)))
    flow = fs.ProbabilityFlow(X, schedule=fs.VP(), solver=fs.Dopri5(rtol=1e-5, atol=1e-5), dtype=torch.float64)
    exact = torch.distributions.Normal(torch.tensor(UNITS.shift), torch.tensor(UNITS.scale).double())
    nats = exact.log_prob(x).sum(1)
    result = flow.log_likelihood(x)
    torch.testing.assert_close(result.nats, nats, rtol=0, atol=1e-3)
    torch.testing.assert_close(result.bits_per_dim(), -nats / (2 * math.log(2)), rtol=0, atol=1e-3)
    latents = flow.encode(x)
    torch.testing.assert_close(latents, result.latent)
    torch.testing.assert_close(flow.decode(latents), x, rtol=1e-6, atol=0)
    x.requires_grad_()
    score = torch.autograd.grad(flow.log_likelihood(x).nats.sum(), x)[0]
    right = -(x - torch.tensor(UNITS.shift)) / torch.tensor(UNITS.scale).double() ** 2
    torch.testing.assert_close(score, right, rtol=1e-2, atol=1e-3)


def test_a_score_is_of_the_density_in_the_units_of_the_data():
    x = torch.tensor([[6000.0, 0.201], [4000.0, 0.1]])
    score = chains.level_score(X, 1e-2)(x)
    torch.testing.assert_close(score[0], torch.tensor([-1e-3, -250.0]), rtol=1e-2, atol=0)
    assert score.shape == (2, 2)


def test_guides_see_and_change_estimates_in_the_units_of_the_data():
    """A measurement of the first column, as noisy as its spread: what it is without the transform, in those units."""
    sampler = fs.Sampler(
        X, schedule=fs.VP(), solver="ddpm", steps=100, batch=500,
        guide=fs.DPS(lambda D: D[:, :1], noise=1000.0),
    )  # fmt: skip
    same = fs.Sampler(
        Y, schedule=fs.VP(), solver="ddpm", steps=100, batch=500, guide=fs.DPS(lambda D: D[:, :1], noise=1.0)
    )
    x = sampler.run(range(500), y=torch.full((500, 1), 7000.0))
    y = same.run(range(500), y=torch.full((500, 1), 2.0))
    torch.testing.assert_close(UNITS.inverse(x), y, rtol=0, atol=2e-3)
    seen = []

    def energy(D, y):
        seen.append(D.detach())
        return 0.0 * D.sum(1)

    fs.Sampler(X, guide=fs.Chain((fs.EnergyGuidance(energy),)), **PLAIN).run(range(4))
    assert (seen[-1][:, 0] > 100).all() and (seen[-1][:, 1] - 0.2).abs().max() < 0.02
    with pytest.raises(ValueError, match="PiGDM takes one noise level"):
        fs.Sampler(X, guide=fs.PiGDM(Masked(torch.tensor([True, False])), 1.0), **PLAIN).run(
            range(2), y=torch.zeros(2, 2)
        )


def test_the_grid_of_a_measurement_is_fine_enough_in_the_networks_units():
    fine = fs.Sampler(X, schedule=fs.VP(), guide=fs.DPS(lambda D: D[:, :1], noise=1.0))
    same = fs.Sampler(Y, schedule=fs.VP(), guide=fs.DPS(lambda D: D[:, :1], noise=1e-3))
    assert np.array_equal(fine.grid(fs.VP()), same.grid(fs.VP()))


def test_what_does_not_go_with_a_transform_is_refused():
    with pytest.raises(ValueError, match=r"clip = 1.0: .* no one bound fits"):
        fs.Sampler(X, clip=1.0)
    with pytest.raises(ValueError, match="in other units"):
        fs.Sampler(X, guidance=fs.Guidance(2.0, model=Y))
    for change in (lambda: fs.whitened(X, Diagonal(torch.ones(2))), lambda: in_basis(X, torch.eye(2))):
        with pytest.raises(ValueError, match="has a transform already"):
            change()
    with pytest.raises(ValueError, match="3 columns for samples of shape"):
        replace(Y, transform=Affine((0.0,) * 3, (1.0,) * 3))


def test_a_folder_keeps_the_transform(tmp_path):
    spec = {"name": "MLP", "dim": 2, "width": 8}
    model = fs.ScoreModel(build(spec), (2,), fs.EDM(), fs.Parametrization("edm", "tanh"), transform=UNITS)
    save_model(tmp_path, model.net, spec, model, torch.float32)
    assert load_model(tmp_path).transform == UNITS
    text = (tmp_path / "config.json").read_text()
    for old, new in (("5000.0", '"wide"'), ("1000.0", "-1.0"), ("5000.0,", "")):
        (tmp_path / "config.json").write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=r"config\.json"):
            load_model(tmp_path)
