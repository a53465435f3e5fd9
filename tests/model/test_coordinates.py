"""dx = A dW: a matrix in front of the noise changes nothing but the variables."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastscore.model.coordinates import Dense, Diagonal, LowRank, whitened
from fastscore.model.score import ScoreModel
from fastscore.ops.noise import NoiseKey
from fastscore.process.continuous import VE, VP
from fastscore.process.grid import karras, uniform
from fastscore.process.parametrization import Parametrization
from fastscore.sampler import Sampler
from fastscore.solvers import DDIM, DPMpp2M, Heun

D = 4
RNG = np.random.default_rng(0)
U, V = (torch.from_numpy(0.4 * RNG.standard_normal((D, 2))) for _ in range(2))
FULL = torch.from_numpy(np.eye(D) + 0.3 * RNG.standard_normal((D, D)))
SCALES = [0.5, -2.0, 1.0, 3.0]
MATRICES = {
    "diagonal": (Diagonal(torch.tensor(SCALES)), torch.diag(torch.tensor(SCALES).double())),
    "low-rank": (LowRank(U, V), torch.eye(D).double() + U @ V.T),
    "symmetric": (LowRank(U), torch.eye(D).double() + U @ U.T),
    "dense": (Dense(FULL), FULL),
}  # fmt: skip
MEAN = np.array([0.5, -1.0, 0.2, 0.0])
ROOT = RNG.standard_normal((D, D)) * 0.4 + np.eye(D)
COV = ROOT @ ROOT.T


def gaussian(schedule, prediction, noise_cov, mean=MEAN, cov=COV, root=None):
    """The exact network of data N(mean, cov) in noise of covariance sigma^2 noise_cov; ``root`` z is that noise."""

    def net(x, t, cond):
        t = float(t[0])
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        total = alpha**2 * cov + sigma**2 * noise_cov
        centred = x.flatten(1).double().numpy() - alpha * mean
        s = -np.linalg.solve(total, centred.T).T
        x0 = mean + alpha * centred @ np.linalg.solve(total, cov)
        eps = (x.flatten(1).double().numpy() - alpha * x0) / sigma
        if root is not None:
            eps = np.linalg.solve(root, eps.T).T
        value = {"score": s, "x0": x0, "eps": eps, "v": alpha * eps - sigma * x0}[prediction]
        return torch.from_numpy(value).to(x).reshape(x.shape)

    return ScoreModel(net, (2, 2), schedule, Parametrization(prediction))


@pytest.mark.parametrize("name", MATRICES)
def test_products_inverses_and_transposes(name):
    matrix, full = MATRICES[name]
    x = torch.from_numpy(RNG.standard_normal((70, 2, 2)))
    flat = x.flatten(1)
    assert torch.allclose(matrix(x).flatten(1), flat @ full.T, atol=1e-13)
    assert torch.allclose(matrix.transpose(x).flatten(1), flat @ full, atol=1e-13)
    assert torch.allclose(matrix.inverse(x).flatten(1), torch.linalg.solve(full, flat.T).T, atol=1e-12)
    whole = matrix(x.float())
    assert torch.equal(matrix(x[3:5].float()), whole[3:5])  # nor does a sample depend on its company here
    assert matrix(x.bfloat16()).dtype == torch.bfloat16
    assert matrix(x[:0]).shape == (0, 2, 2)


@pytest.mark.parametrize("prediction", ["score", "x0", "eps", "white eps", "v"])
@pytest.mark.parametrize("name", MATRICES)
def test_a_network_of_x_becomes_the_exact_one_of_y(name, prediction):
    """y has data N(A^-1 mean, A^-1 cov A^-T) in white noise, whose network is known in closed form."""
    matrix, full = MATRICES[name]
    a, white = full.numpy(), prediction == "white eps"
    prediction = prediction.removeprefix("white ")
    inverse = np.linalg.inv(a)
    model = whitened(
        gaussian(VP(), prediction, a @ a.T, root=a if white else None), matrix, "white" if white else "colored"
    )
    exact = gaussian(VP(), prediction, np.eye(D), inverse @ MEAN, inverse @ COV @ inverse.T)
    for t in (0.05, 0.6, 1.0):
        y = torch.from_numpy(RNG.standard_normal((5, 2, 2)))
        label = torch.full((5,), t, dtype=torch.float64)
        assert torch.allclose(model.net(y, label, None), exact.net(y, label, None), rtol=1e-9, atol=1e-10)


@pytest.mark.thirds
@pytest.mark.parametrize("schedule", [VP(), VE()], ids=["vp", "ve"])
@pytest.mark.parametrize("name", ["low-rank", "dense"])
def test_samples_follow_the_closed_form(name, schedule):
    """The ODE's solution is affine in the prior's z: in the eigenvectors of cov y, each element by itself.

    y_0 = m + sqrt(c / (alpha^2 c + sigma^2)) (std z - alpha m). Recorded unit vectors give all of the map, so
    also the exact mean and covariance of the samples.
    """
    matrix, full = MATRICES[name]
    a, inverse = full.numpy(), np.linalg.inv(full.numpy())
    m = inverse @ MEAN
    c, basis = np.linalg.eigh(inverse @ COV @ inverse.T)
    alpha, sigma = float(schedule.alpha(1.0)), float(schedule.sigma(1.0))
    gain = a @ basis @ np.diag(np.sqrt(c / (alpha**2 * c + sigma**2))) @ basis.T
    shift, spread = MEAN - gain @ (alpha * m), schedule.prior_std * gain
    assert np.allclose(spread @ spread.T, COV, atol=0.05)  # the ODE itself gets there but for the prior
    assert np.allclose(shift, MEAN, atol=0.05)
    model = whitened(gaussian(schedule, "score", a @ a.T), matrix)
    z, errors = torch.cat([torch.zeros(1, D), torch.eye(D)]).double()[None], []
    for steps in (50, 100):
        grid = karras(steps, clean=False, end=1e-4 if schedule == VP() else None)
        sampler = Sampler(model, solver=Heun(), grid=grid, dtype=torch.float64, batch=D + 1)
        x = matrix(sampler.run(range(D + 1), noise=z)).flatten(1).numpy()
        errors.append(max(np.abs(x[0] - shift).max(), np.abs((x[1:] - x[0]).T - spread).max()))
    assert errors[1] < 0.3 * errors[0] < 0.03  # second order


def test_the_diagonal_is_a_schedule_of_its_own_for_each_element():
    """A = c I with data c x_0 is the plain run times c: the same normals, the same coefficients."""
    c = 2.0  # a power of two, so that nothing rounds differently
    plain = Sampler(gaussian(VP(), "x0", np.eye(D)), solver=DDIM(1.0), grid=uniform(20), batch=8)
    wide = gaussian(VP(), "x0", c**2 * np.eye(D), c * MEAN, c**2 * COV)
    matrix = Diagonal(torch.full((2, 2), c))
    scaled = Sampler(whitened(wide, matrix), solver=DDIM(1.0), grid=uniform(20), batch=8)
    assert torch.allclose(matrix(scaled.run(range(10), 4)), c * plain.run(range(10), 4), rtol=1e-5)


def test_modules_inside_move_and_train_flags_hold():
    net = torch.nn.Linear(D, D)
    model = ScoreModel(lambda u, t, c: net(u.flatten(1)).view_as(u), (D,), VP())
    assert whitened(model, Dense(FULL)).net(torch.zeros(2, D), torch.zeros(2), None).shape == (2, D)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(D, D)

        def forward(self, u, c_noise, cond=None):
            return self.layer(u)

    model = ScoreModel(Net().train(), (D,), VP())
    sampler = Sampler(whitened(model, Dense(FULL)), solver=DPMpp2M(), grid=uniform(3, clean=True))
    assert model.net.training  # before, during and after a run it is the caller's
    assert sampler.net_dtype == torch.float32
    assert sampler.run(range(3)).isfinite().all()


def test_bad_matrices_are_named():
    model = gaussian(VP(), "x0", np.eye(D))
    with pytest.raises(ValueError, match="entry of d is 0"):
        Diagonal(torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match=r"U \(4,\) must be finite numbers in 2"):
        LowRank(torch.ones(4))
    with pytest.raises(ValueError, match="one shape"):
        LowRank(U, V[:, :1])
    with pytest.raises(ValueError, match="condition number"):
        LowRank(torch.tensor([[1.0], [0.0]]), torch.tensor([[-1.0], [0.0]]))
    with pytest.raises(ValueError, match="condition number"):
        Dense(torch.ones(D, D))
    with pytest.raises(ValueError, match="must be square"):
        Dense(torch.ones(2, 3))
    with pytest.raises(ValueError, match="finite"):
        Dense(torch.full((2, 2), math.nan))
    with pytest.raises(ValueError, match="A is 2 x 2, a sample has 4"):
        whitened(model, Dense(torch.eye(2)))
    with pytest.raises(ValueError, match="'white'"):
        whitened(model, Dense(FULL), "white")
    with pytest.raises(ValueError, match="do not fit"):
        Dense(FULL)(torch.zeros(2, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rank_is_judged_in_the_precision_of_the_matrix(dtype):
    """Products of rank D - 1 and 1 are singular up to their rounding, whatever that left in place of zeros."""
    for k in range(20):
        n = 3 + k % 8
        z = NoiseKey.of(k, range(n)).normal(0, n, torch.float64).float()
        B, u, w = z[:, 1:].to(dtype), z[:, 0].to(dtype), z[0].to(dtype)
        unit = torch.nn.functional.normalize(z[:, :1], dim=0).to(dtype)
        for make in (
            lambda B=B: Dense(B @ B.T),
            lambda u=u, w=w: Dense(torch.outer(u, w)),
            lambda v=unit: LowRank(v, -v),
        ):
            with pytest.raises(ValueError, match="condition number"):
                make()
        assert LowRank(unit, -0.5 * unit).inverse(torch.ones(1, n)).isfinite().all()
        assert LowRank(unit).size == n  # I + u u^T is never singular


def test_matrices_that_are_invertible_in_their_precision_are_taken():
    z = NoiseKey.of(3, range(256)).normal(0, 256, torch.float64)
    for a in (
        z.float(),  # condition 1e3
        torch.diag(torch.tensor([1.0, 1e-8])),  # no rounding of its entries makes it singular
        torch.tensor([[2, 1], [1, 1]]),  # integers
        torch.tensor([[1.0, 1.0], [1.0, 1.0 + 1e-9]], dtype=torch.float64),
        1e-20 * torch.eye(3),
    ):
        matrix = Dense(a)
        x = torch.ones(2, len(a), dtype=torch.float64)
        assert torch.allclose(matrix(matrix.inverse(x)), x, rtol=1e-5)
    for singular in (torch.arange(9).reshape(3, 3), torch.ones(3, 3, dtype=torch.float64)):
        with pytest.raises(ValueError, match="condition number"):
            Dense(singular)
    with pytest.raises(ValueError, match="give it in float64"):
        Dense(torch.tensor([[1.0, 1.0], [1.0, 1.0 + 1.2e-7]]))
