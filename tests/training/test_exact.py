"""What a training step computes, against formulas and loops written here: a change of any of them is seen."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import fastscore as fs
from fastscore.data.load import Dataset
from fastscore.model.nets import build
from fastscore.ops.noise import NoiseKey
from fastscore.process.parametrization import PREDICTIONS, SCALINGS, Parametrization
from fastscore.process.schedule import g2
from fastscore.training import checkpoint, losses, recipe
from fastscore.training.recipe import largest_component, noise_levels
from fastscore.training.train import TrainConfig, train

SCHEDULES = [fs.VP(), fs.SubVP(), fs.VE(), fs.TutorialVE(), fs.EDM(), fs.Flow(), fs.discrete_vp(), fs.smld()]
PLAIN = TrainConfig(
    optimizer="adam", ema=None, warmup=0, cooldown=0, clip=0, weight_decay=0, dtype="fp32", compile=False
)
DATA = 0.7


class Recorder(nn.Module):
    """A small network that keeps what it was called with and what its weights were."""

    def __init__(self, classes: int = 0) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body, self.classes = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)), classes
        self.calls: list[tuple[torch.Tensor, ...]] = []
        self.weights: list[list[torch.Tensor]] = []

    def forward(self, u, c_noise, cond=None):
        self.calls.append((u.detach().clone(), c_noise.clone(), cond))
        return self.body(torch.cat([u, c_noise[:, None]], 1))

    def keep(self, *progress):
        self.weights.append([p.detach().clone() for p in self.parameters()])

    def __deepcopy__(self, memo):
        copy = Recorder(self.classes)
        copy.load_state_dict(self.state_dict())
        return copy

    @property
    def u(self):
        return torch.cat([call[0] for call in self.calls])

    @property
    def label(self):
        return torch.cat([call[1] for call in self.calls])


def times(schedule, n=7):
    return np.linspace(schedule.t_end, schedule.T, n + 2)[1:-1]


def error_scales(schedule, p, t):
    """d eps / dF at a given x, written out: F = eps, x0, .. or EDM's, where eps = u sin - F cos."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    if p.unit:
        return -np.cos(np.arctan2(sigma, alpha * p.sigma_data))
    rates = schedule.dalpha(t), schedule.dsigma(t)
    return {
        "eps": np.ones_like(alpha),
        "x0": -alpha / sigma,
        "score": -sigma,
        "v": alpha / (alpha**2 + sigma**2),
        "flow": alpha / (alpha * rates[1] - sigma * rates[0]),
    }[p.prediction]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("scaling", SCALINGS)
def test_a_network_that_returns_the_target_has_no_loss_and_one_beside_it_the_weight(schedule, scaling):
    """The targets and weights of every prediction, from their definitions."""
    t = times(schedule)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x0, z = (NoiseKey.of(3, range(len(t))).normal(k, 2, torch.float64) for k in (0, 1))
    length = np.hypot(alpha * DATA, sigma)
    for prediction in PREDICTIONS:
        p = Parametrization(prediction, sigma_data=DATA, scaling=scaling)
        a, b = {
            "eps": (0.0 * alpha, 1.0 + 0.0 * alpha),
            "x0": (1.0 + 0.0 * alpha, 0.0 * alpha),
            "score": (0.0 * alpha, -1.0 / sigma),
            "v": (-sigma, alpha),
            "flow": (schedule.dalpha(t), schedule.dsigma(t)),
            "edm": (sigma / (DATA * length), -DATA * alpha / length),
        }["edm" if p.unit else prediction]
        target = torch.from_numpy(a)[:, None] * x0 + torch.from_numpy(b)[:, None] * z
        scale = error_scales(schedule, p, t)
        own = error_scales(schedule, replace(p, scaling="none"), t)
        weights = {
            "edm": (scale / error_scales(schedule, Parametrization("edm", sigma_data=DATA), t)) ** 2,
            "simple": (scale / own) ** 2,
            "sigma2": scale**2,
            "likelihood": scale**2 * g2(schedule, t) / sigma**2,
        }
        weights[lambda t: 2.0 + t] = scale**2 / sigma**2 * (2.0 + t)
        for weighting, weight in weights.items():
            seen = []

            def net(u, label, cond, off=0.0, target=target, seen=seen):
                seen.append(u)
                return target + off

            def loss(off, weighting=weighting, p=p, net=net):
                return losses.denoising_score_matching(
                    lambda u, label, cond: net(u, label, cond, off), x0, t, z, None, schedule, p, weighting
                ).numpy()

            np.testing.assert_allclose(loss(0.0), 0.0, atol=1e-24)
            np.testing.assert_allclose(loss(0.1), 0.01 * weight, rtol=1e-9)
            x = torch.from_numpy(alpha)[:, None] * x0 + torch.from_numpy(sigma)[:, None] * z
            torch.testing.assert_close(seen[0], x / torch.from_numpy(length)[:, None] if p.unit else x)


def test_the_default_weighting_is_balanced():
    for prediction in PREDICTIONS:
        assert losses.default_weighting(Parametrization(prediction, scaling="unit")) == "edm"
    raw = {p: losses.default_weighting(Parametrization(p)) for p in PREDICTIONS}
    assert raw == {"eps": "simple", "x0": "simple", "v": "simple", "flow": "simple", "score": "sigma2", "edm": "edm"}


@pytest.mark.thirds
@pytest.mark.parametrize(
    "prediction", [p if p in ("eps", "score") else pytest.param(p, marks=pytest.mark.slow) for p in PREDICTIONS]
)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_by_default_every_prediction_trains_the_same_network(schedule, prediction):
    """To the bit: what EDM's loss asks of a network of unit scaling does not depend on the prediction."""
    x = np.array([[1.0, -2.0], [0.5, 0.1], [-1.0, 0.3]], np.float32)
    config = TrainConfig(images=96, batch=32, dtype="fp32", compile=False)
    nets = [
        train(Recorder(), x, schedule, recipe.parametrize(name, 0.9, schedule=schedule), config).net
        for name in ("edm", prediction)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*(net.parameters() for net in nets), strict=True))


@pytest.mark.parametrize("p", [Parametrization("eps", "t/T"), Parametrization("score", "t"), Parametrization("v", "t")])
def test_the_plain_recipe_is_the_loop_of_the_tutorials(p):
    """Adam at one rate, t uniform, mean square error, the last weights: the same weights as a loop of ten lines."""
    schedule, net, loop = fs.VP(), Recorder(), Recorder()
    x = np.array([[1.5, -0.5]], np.float32)
    model = train(net, x, schedule, p, replace(PLAIN, images=640, batch=64, lr=0.01, times="uniform"))
    optimizer = torch.optim.Adam(loop.parameters(), lr=0.01)
    for u, label, _ in net.calls:
        t = label.double().numpy()
        alpha, sigma = (torch.from_numpy(v)[:, None] for v in (schedule.alpha(t), schedule.sigma(t)))
        z = (u.double() - alpha * torch.from_numpy(x)) / sigma
        F = loop(u, label).double()
        error = {"eps": F - z, "score": sigma * F + z, "v": F - (alpha * z - sigma * torch.from_numpy(x))}[p.prediction]
        optimizer.zero_grad()
        error.square().mean().backward()
        optimizer.step()
    for trained, expected in zip(model.net.parameters(), loop.parameters(), strict=True):
        torch.testing.assert_close(trained, expected, rtol=0.0, atol=2e-4)  # ten steps of 0.01; t has 24 bits
    assert all(torch.equal(a, b) for a, b in zip(model.net.parameters(), net.parameters(), strict=True))


def test_the_average_of_the_weights_is_the_power_functions():
    """Karras et al. 2024, eq. 2: the weights of every step, averaged here in float64; 16.97 is a width of 5 %."""
    gamma, net = TrainConfig().ema, Recorder()
    assert math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) == pytest.approx(0.05, rel=1e-3)
    x = np.array([[1.0, -1.0]], np.float32)
    model = train(net, x, config=TrainConfig(images=1200, batch=30, lr=0.05, compile=False), progress=net.keep)
    steps = len(net.weights)
    assert steps == 40
    k = np.arange(1, steps + 1.0)
    beta = (1.0 - 1.0 / k) ** 17.97
    weight = (1.0 - beta) * np.array([np.prod(beta[j + 1 :]) for j in range(steps)])
    assert weight.sum() == pytest.approx(1.0)
    for j, trained in enumerate(model.net.parameters()):
        average = sum(w * values[j].double() for w, values in zip(weight, net.weights, strict=True))
        torch.testing.assert_close(trained.double(), average, rtol=0.0, atol=1e-6)
    last = train(Recorder(), x, config=TrainConfig(images=1200, batch=30, lr=0.05, compile=False, ema=None))
    assert all(torch.equal(a, b) for a, b in zip(last.net.parameters(), net.weights[-1], strict=True))


def test_the_rate_rises_stays_and_falls(monkeypatch):
    config = TrainConfig(images=1000, batch=10, lr=0.5, compile=False)
    assert [config.lr_at(k) for k in (0, 40, 90, 500, 750, 875, 990)] == pytest.approx(
        [0.05, 0.25, 0.5, 0.5, 0.5, 0.25, 0.02]
    )
    assert TrainConfig(images=10**7).lr_at(25_000 - 128) == pytest.approx(5e-4)  # 50,000 images of warm-up at most
    rates = []
    step = checkpoint.State.step

    def watched(state):
        rates.append(state.optimizer.param_groups[0]["lr"])
        step(state)

    monkeypatch.setattr(checkpoint.State, "step", watched)
    train(Recorder(), np.zeros((4, 2), np.float32), config=config)
    assert rates == [config.lr_at(10 * k) for k in range(100)]


def test_default_times_follow_the_data_and_noise_is_fresh():
    """ln sigma ~ N(ln sigma_data - 0.5, 1.2^2), EDM's at its 0.5; z normal, none twice; all of the data."""
    n, net = 16_000, Recorder()
    data = np.where(np.arange(4)[:, None] % 2, 0.5, -0.5).astype(np.float32) * np.ones((1, 2), np.float32)
    p = Parametrization("edm", "sigma", 0.5, "unit")
    train(net, data, fs.EDM(), p, TrainConfig(images=n, batch=400, dtype="fp32", compile=False))
    log = net.label.double().log().numpy()
    assert abs(log.mean() + math.log(2) + 0.5) < 4 * 1.2 / math.sqrt(n)
    assert abs(log.std() - 1.2) < 4 * 1.2 / math.sqrt(2 * n)
    below = np.mean(log < -math.log(2) - 0.5 - 1.2)  # a normal law has 15.87 % below one standard deviation
    assert abs(below - 0.1587) < 4 * math.sqrt(0.1587 * 0.8413 / n)
    x = net.u.double() * torch.hypot(net.label.double(), torch.tensor(0.5))[:, None]
    z = torch.stack([(x - x0) / net.label.double()[:, None] for x0 in (0.5, -0.5)])
    low = net.label < 0.05  # there the nearer of the two is the one that was noised
    drawn = torch.where(z[0].abs().amax(1) < z[1].abs().amax(1), z[0].T, z[1].T)[:, low]
    count = drawn.numel()
    assert count > 2000
    assert abs(drawn.mean()) < 4 / math.sqrt(count)
    assert abs(drawn.var() - 1.0) < 4 * math.sqrt(2 / count)
    assert len(torch.unique(net.u, dim=0)) == n
    assert len(torch.unique(net.label)) > 0.99 * n
    near = (z[0].abs().amax(1) < z[1].abs().amax(1))[low].double().mean()
    assert abs(float(near) - 0.5) < 4 * 0.5 / math.sqrt(int(low.sum()))
    still = Recorder()
    config = TrainConfig(images=4000, batch=400, dtype="fp32", compile=False)
    train(still, np.zeros((1, 2), np.float32), fs.EDM(), p, config)
    z = (
        (still.u * torch.hypot(still.label, torch.tensor(0.5))[:, None] / still.label[:, None])
        .view(10, 400, 2)
        .double()
    )
    for a, b in ((z[1:], z[:-1]), (z[:, 1:], z[:, :-1]), (z[..., 0], z[..., 1])):  # batches, neighbours, elements
        assert abs(float((a * b).mean())) < 4 / math.sqrt(a.numel())


def test_a_tenth_of_the_labels_is_dropped():
    n, net = 8000, Recorder(classes=3)
    labels = np.arange(90) % 3
    x = np.stack([labels, -labels], 1).astype(np.float32)
    config = TrainConfig(images=n, batch=400, compile=False)
    train(net, Dataset(x, labels, ("a", "b", "c")), fs.EDM(1e-4, 10.0), config=config, classes=3)
    drawn = torch.cat([call[2] for call in net.calls])
    null = (drawn == 3).double().mean()
    assert abs(float(null) - 0.1) < 4 * math.sqrt(0.09 / n)
    counts = torch.bincount(drawn, minlength=4)[:3] / n
    assert (counts - 0.3).abs().max() < 4 * math.sqrt(0.21 / n)
    clean = net.label < -0.7  # tanh(ln(sigma / sigma_data) / 4): there x is the example itself
    x = net.u * recipe.measured_std(Dataset(x))
    known = clean & (drawn < 3)
    assert int(known.sum()) > 20
    assert torch.equal(x[known][:, 0].round().long(), drawn[known])
    whole = Recorder(classes=3)
    train(whole, Dataset(np.zeros((90, 2), np.float32), labels), config=replace(config, label_dropout=0.0), classes=3)
    assert not (torch.cat([call[2] for call in whole.calls]) == 3).any()


def test_the_loss_that_is_written_is_the_one_that_is_descended(tmp_path):
    """One step on one example that is 0: the mean of lambda |F - F*|^2 over examples and elements, from the inputs."""
    net, start = Recorder(), Recorder()
    p = Parametrization("eps", "t", 1.0, "unit")
    config = TrainConfig(images=64, batch=64, dtype="fp32", compile=False, weighting="simple")
    train(net, np.zeros((1, 2), np.float32), fs.VP(), p, config, out=tmp_path)
    u, label, _ = net.calls[0]
    t = label.double().numpy()
    alpha, sigma = (torch.from_numpy(v)[:, None] for v in (fs.VP().alpha(t), fs.VP().sigma(t)))
    z = u.double() * torch.hypot(alpha, sigma) / sigma
    F = start(u, label).double()
    error = alpha * (F + alpha * z)  # eps_hat - z of a network that makes -v
    written = float((tmp_path / "loss.csv").read_text().splitlines()[1].split(",")[1])
    assert written == pytest.approx(float(error.square().mean().detach()), rel=1e-4)


def test_weight_decay_and_clipping_are_settings():
    """Without a gradient AdamW shrinks by lr times the decay; a bound on the norm bounds a step of plain moments."""
    x = np.ones((1, 2), np.float32)
    one = replace(PLAIN, images=8, batch=8, lr=0.1)
    start = Recorder()
    moved = [train(Recorder(), x, config=c) for c in (one, replace(one, optimizer="adamw", weight_decay=0.5))]
    for before, adam, adamw in zip(start.parameters(), *(m.net.parameters() for m in moved), strict=True):
        torch.testing.assert_close(adamw, adam - 0.1 * 0.5 * before, rtol=1e-4, atol=1e-6)
    norms = []
    net = Recorder()
    for parameter in net.parameters():
        parameter.register_post_accumulate_grad_hook(lambda q: norms.append(q.grad.norm()))
    train(net, x, config=replace(one, clip=1e-12, lr=1e-3))
    free = Recorder()
    train(free, x, config=replace(one, lr=1e-3))
    # Adam's first step is lr g / (|g| + 1e-8): a gradient bounded far below 1e-8 hardly moves a weight.
    assert (
        max(float((a - b).detach().abs().max()) for a, b in zip(net.parameters(), start.parameters(), strict=True))
        < 1e-6
    )
    assert (
        max(float((a - b).detach().abs().max()) for a, b in zip(free.parameters(), start.parameters(), strict=True))
        > 9e-4
    )


@pytest.mark.parametrize("embedding", ["fourier", "sinusoidal", "learned"])
@pytest.mark.parametrize("label", ["t", "t/T", "999t", "sigma", "tanh"])
def test_time_features_tell_the_times_of_any_label_apart_and_stay_smooth(label, embedding):
    """Over the whole range of labels, whatever their unit: neighbours of 1,000 are near, the ends far apart."""
    torch.manual_seed(0)
    for schedule in (fs.discrete_vp(), fs.VP(), fs.EDM()):
        p = Parametrization("eps", label, 0.5, "unit")
        scale = recipe.label_scale(embedding, schedule, p)
        net = build({"name": "MLP", "dim": 2, "embedding": embedding, "scale": scale})
        low, high = recipe.label_range(schedule, p, schedule.t_end)
        features = net.features(torch.linspace(low, high, 1001)).detach()
        steps = features.diff(dim=0).norm(dim=1) / features.std(0).norm()
        assert steps.max() < 0.5
        assert (features[0] - features[-1]).norm() > 0.3 * features.std(0).norm()


def test_noise_levels_reach_the_largest_component_and_are_edms_where_that_is_near():
    rng = np.random.default_rng(0)
    points = Dataset.of(rng.standard_normal((4000, 3)).astype(np.float32))
    assert noise_levels(points, 0.5) == (math.log(0.5) - 0.5, 1.2)
    bright = rng.choice([-1.0, 1.0], (4000, 1)) * np.ones(400) + 0.1 * rng.standard_normal((4000, 400))
    images = Dataset.of(bright.astype(np.float32))
    assert largest_component(images) == pytest.approx(20.0, rel=0.05)  # sqrt(400), the distance from the mean
    mean, std = noise_levels(images, 1.0)
    assert mean + std == pytest.approx(math.log(20.0), abs=3 * 0.05 + 0.03)  # std to two digits, the component too
    assert mean - 2.0 * std == pytest.approx(-0.5 - 2.4)
    assert noise_levels(images, 1.0, mean=-1.0) == (-1.0, 1.2)
    assert noise_levels(images, 1.0, std=0.7) == (-0.5, 0.7)
    one = Dataset.of(np.ones((1, 3), np.float32))
    assert noise_levels(one, 1.0) == (-0.5, 1.2)
