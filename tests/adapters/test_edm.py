"""NVlabs' networks in their preconditionings: EDM's own loop around them, labels, guidance, ranges, tables."""

from __future__ import annotations

import copy

import edm_nets
import numpy as np
import pytest
import textbook
import torch

import fastscore as fs
from fastscore.adapters import from_denoiser, from_edm

KINDS = [edm_nets.Precond, edm_nets.VPPrecond, edm_nets.VEPrecond, edm_nets.DDPMPrecond, edm_nets.Precond2]
SHAPE, LABELS = (2, 3, 3), torch.tensor([2, 0, 1, 2])
X = torch.from_numpy(np.random.default_rng(5).standard_normal((4, *SHAPE)))
SIGMAS = (60.0, 22.0, 7.0, 2.0, 0.6, 0.1, 0.0)


def theirs(loop, D, sigmas=SIGMAS, z=()) -> torch.Tensor:
    """A loop of the textbook around D(x, sigma), from sigma x."""

    def denoise(x, alpha, sigma):
        return (
            D(torch.from_numpy(x).reshape(-1, *SHAPE), torch.tensor(sigma, dtype=torch.float64))
            .detach()
            .numpy()
            .reshape(len(x), -1)
        )

    start = (sigmas[0] * X).numpy().reshape(len(X), -1)
    process = textbook.ve(lambda t: t, lambda t: 2.0 * t)
    return torch.from_numpy(loop(process, denoise, sigmas, start, iter(z))).reshape(X.shape)


def ours(model, solver, sigmas=SIGMAS, labels=None, **settings) -> torch.Tensor:
    sampler = fs.Sampler(
        model, schedule=fs.EDM(sigmas[-2], sigmas[0]), solver=solver, grid=fs.Times(sigmas), start="state", batch=4,
        dtype=torch.float64, **settings,
    )  # fmt: skip
    return sampler.run(range(4), init=sigmas[0] * X, **({} if labels is None else {"labels": labels}))


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return float((a - b).abs().max()) < 1e-9 * float(b.abs().max())


SOLVERS = {textbook.edm: fs.Heun(), textbook.euler: fs.Euler(), textbook.dpmpp_2m: fs.DPMpp2M()}


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_those_of_edms_own_loops(kind):
    net = kind(label_dim=3).double()
    model, hot = from_edm(net), torch.eye(3, dtype=torch.float64)[LABELS]
    sigmas = (*net.u.tolist()[:7], 0.0) if hasattr(net, "u") else SIGMAS
    for loop, solver in SOLVERS.items():
        expected = theirs(loop, lambda x, sigma: net(x, sigma, hot), sigmas)
        assert close(ours(model, solver, sigmas, LABELS), expected)
    expected = theirs(textbook.edm, lambda x, sigma: net(x, sigma, None), sigmas)  # None is the vector of zeros
    assert close(ours(model, fs.Heun(), sigmas), expected)


def test_a_float32_network_agrees_to_its_rounding():
    net = edm_nets.Precond(label_dim=3)
    model, hot, double = from_edm(net), torch.eye(3, dtype=torch.float64)[LABELS], copy.deepcopy(net).double()
    for loop, solver in SOLVERS.items():
        sampler = fs.Sampler(model, solver=solver, grid=fs.Times(SIGMAS), start="state", batch=4)
        x = sampler.run(range(4), init=(SIGMAS[0] * X).float(), labels=LABELS).double()
        expected = theirs(loop, lambda x, sigma: double(x, sigma, hot))
        assert float((x - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_guidance_leads_away_from_the_vector_of_zeros_or_from_a_second_network():
    net, other = edm_nets.Precond(label_dim=3).double(), edm_nets.Precond(label_dim=0).double()
    other.model.mix.weight.data.mul_(0.7)
    hot = torch.eye(3, dtype=torch.float64)[LABELS]
    for second, null in ((None, net), (from_edm(other), other)):
        guidance = fs.Guidance(2.0, model=second)

        def mixed(x, sigma, null=null):
            return torch.lerp(null(x, sigma), net(x, sigma, hot), 2.0)

        for loop, solver in SOLVERS.items():
            assert close(ours(from_edm(net), solver, labels=LABELS, guidance=guidance), theirs(loop, mixed))


def test_range_shape_and_classes_are_the_networks_own():
    expected = {
        "Precond": fs.EDM(0.002, 80.0), "VPPrecond": fs.EDM(0.01, 70.0), "VEPrecond": fs.EDM(0.02, 80.0),
        "Precond2": fs.EDM(0.002, 80.0),
    }  # fmt: skip
    for kind in KINDS:
        model = from_edm(kind(img_resolution=5, img_channels=4))
        assert (model.shape, model.classes, model.null) == ((4, 5, 5), 0, None)
        assert model.schedule == expected.get(kind.__name__, model.schedule)
    assert from_edm(edm_nets.Precond(label_dim=7)).null == 7
    assert from_edm(edm_nets.Precond(label_dim=7), null=None).null is None
    assert from_edm(edm_nets.Precond(), sigma_min=0.5, sigma_max=9.0).schedule == fs.EDM(0.5, 9.0)
    assert from_denoiser(edm_nets.Precond2(), (2, 3, 3)).schedule == fs.EDM(0.002, 80.0)
    with pytest.raises(ValueError, match="a Linear has no img_channels and img_resolution; give shape="):
        from_edm(torch.nn.Linear(2, 2))


def test_a_network_with_a_table_is_asked_at_its_levels_only():
    net, asked = edm_nets.DDPMPrecond(), []
    model = from_edm(net)
    assert model.schedule == fs.DiscreteVE(tuple(sorted(net.u.tolist())[1:]))
    net.register_forward_pre_hook(lambda module, inputs: asked.append(float(inputs[1][0])))
    fs.Sampler(model, steps=6, batch=2).run(range(2))
    assert len(asked) == 6 and all(np.abs(net.u.numpy() - sigma).min() < 1e-6 for sigma in asked)


def test_the_network_stays_as_it_is():
    net = edm_nets.Precond(label_dim=3).train()
    model = from_edm(net)
    assert set(map(id, model.net.parameters())) == set(map(id, net.parameters()))
    fs.Sampler(model, steps=1, batch=2).run(range(2), labels=0)
    assert net.training
