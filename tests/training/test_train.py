from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from fastscore.data.load import Dataset
from fastscore.data.toys import toy
from fastscore.model.analytic import gaussian
from fastscore.model.folder import load_model
from fastscore.model.nets import build
from fastscore.ops.noise import NoiseKey
from fastscore.process.continuous import EDM, VP, SubVP, TutorialVE
from fastscore.process.parametrization import PREDICTIONS, Parametrization, components, convert
from fastscore.process.schedule import g2
from fastscore.sampler import Sampler
from fastscore.training import losses
from fastscore.training.train import TrainConfig, train

MLP = {"name": "MLP", "dim": 2, "width": 64, "depth": 2, "classes": 0}
CONFIG = TrainConfig(images=6000, batch=200, warmup=500, dtype="fp32", compile=False, checkpoint_every=3000)


EDM_NET = Parametrization("edm", "log_sigma/4", 0.8)


def fit(out, config=CONFIG, **kw):
    data = kw.pop("data", Dataset(toy("grid", 5000)))
    return train(kw.pop("spec", MLP), data, EDM(), EDM_NET, config, out=out, **kw)


@pytest.mark.parametrize("weighting", losses.WEIGHTINGS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_exact_denoiser_minimises_every_loss(prediction, weighting):
    """With Gaussian data the best network is known; its loss is the posterior variance, weighted."""
    schedule, p = VP(), Parametrization(prediction, sigma_data=0.5)
    target = gaussian(0.5, 0.5, (2,))
    n = 4000
    t = np.full(n, 0.4)
    alpha, sigma = schedule.alpha(t[:1])[0], schedule.sigma(t[:1])[0]
    key = NoiseKey.of(0, range(n))
    x0, z = 0.5 + 0.5 * key.normal(0, 2, torch.float64), key.normal(1, 2, torch.float64)
    gain, weight = convert(
        p.components(schedule, t[:1]), components("x0", schedule, t[:1]), np.array([alpha]), np.array([sigma])
    )
    c_in = float(p.c_in(schedule, t[:1])[0])

    def net(u, label, cond, shift=0.0):
        x = u / c_in
        angle = torch.full((len(x),), float(np.arctan2(sigma, alpha)), dtype=torch.float64)
        return gain[0] * x + weight[0] * (target(x, angle) + shift)

    def loss(shift):
        return losses.denoising_score_matching(
            lambda u, label, cond: net(u, label, cond, shift), x0, t, z, None, schedule, p, weighting
        ).mean()

    best = float(loss(0.0))
    assert float(loss(0.05)) > best
    assert float(loss(-0.05)) > best
    variance = 0.25 * sigma**2 / (alpha**2 * 0.25 + sigma**2)  # of x0 given x
    factor = {
        "edm": (0.25 * alpha**2 + sigma**2) / (0.25 * sigma**2),  # Karras 2022, table 1: 1 / c_out^2
        "simple": weight[0] ** 2,
        "sigma2": (alpha / sigma) ** 2,
        "likelihood": (alpha / sigma) ** 2 * g2(schedule, t[:1])[0] / sigma**2,
    }[weighting]
    assert best == pytest.approx(factor * variance, rel=4 * (2 / (2 * n)) ** 0.5)


def test_times_follow_their_law():
    u = NoiseKey.of(1, range(20_000)).uniform(0, 2).double().numpy()
    uniform = losses.sample_times(VP(), u[:, 0], "uniform")
    assert abs(uniform.mean() - 0.5005) < 4 * 0.289 / 141
    log = np.log(losses.sample_times(EDM(), u, "lognormal", -1.2, 1.2))
    assert abs(log.mean() + 1.2) < 4 * 1.2 / 141
    assert abs(log.std() - 1.2) < 0.03
    t = losses.sample_times(SubVP(), u[:, 0], "importance")
    weight = losses.importance_weight(SubVP(), t)
    assert weight.mean() == pytest.approx(1.0, abs=0.05)  # an unbiased change of measure
    with pytest.raises(ValueError, match="times = 'normal'"):
        losses.sample_times(VP(), u, "normal")


def test_implicit_and_sliced_score_matching_find_the_score():
    """Both equal E|s - grad log p|^2 / c + const: for a linear score the minimum is at the true slope."""
    x = 0.5 * NoiseKey.of(2, range(20_000)).normal(0, 2, torch.float64)
    v = NoiseKey.of(2, range(20_000)).normal(1, 2, torch.float64)
    true = -1 / 0.25

    def at(loss):
        return [float(loss(lambda y, k=k: k * true * y).detach().mean()) for k in (0.9, 1.0, 1.1)]

    for values in (
        at(lambda s: losses.implicit_score_matching(s, x)),
        at(lambda s: losses.sliced_score_matching(s, x, v)),
    ):
        assert values[1] < min(values[0], values[2])
    exact = 2 * (1 / 0.25) - 2 * 2 / 0.25  # E|s|^2 + 2 tr(grad s) at the true score
    assert at(lambda s: losses.implicit_score_matching(s, x))[1] == pytest.approx(exact, rel=0.05)


def test_training_learns_a_toy_set_and_samples_from_it(tmp_path):
    model = fit(
        tmp_path, replace(CONFIG, images=150_000, batch=500, lr=6e-3, mean=-1.2, warmup=5000, checkpoint_every=75_000)
    )
    rows = np.genfromtxt(tmp_path / "loss.csv", delimiter=",", names=True)
    assert rows["loss"][-1] < 0.8 * rows["loss"][0]
    loaded = load_model(tmp_path)
    x = Sampler(loaded, batch=500).run(range(500)).numpy()
    data = toy("grid", 500, seed=5)
    near = np.abs(x - np.round(x)).max(1) < 0.3
    assert near.mean() > 0.8  # uniform points would give 0.36
    assert np.abs(x).std() == pytest.approx(np.abs(data).std(), rel=0.2)
    assert loaded.parametrization == model.parametrization
    same = Sampler(model, batch=500).run(range(5)).numpy()
    assert np.abs(same - x[:5]).max() < 0.05  # float16 weights on disk


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path):
    fit(tmp_path / "whole")

    class Stop(Exception):
        pass

    def interrupt(seen, total, figures):
        if seen >= 4200:
            raise Stop

    with pytest.raises(Stop):
        fit(tmp_path / "parts", progress=interrupt)
    with safe_open(tmp_path / "parts/checkpoint.safetensors", "pt") as stopped:
        assert json.loads(stopped.metadata()["progress"])["seen"] == 3000
    fit(tmp_path / "parts")
    whole, parts = (load_file(tmp_path / k / "checkpoint.safetensors") for k in ("whole", "parts"))
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def test_a_run_of_other_settings_is_not_continued(tmp_path):
    fit(tmp_path)
    with pytest.raises(ValueError, match=r"other settings \(train\.lr\)"):
        fit(tmp_path, replace(CONFIG, lr=5e-4))
    with pytest.raises(ValueError, match=r"other settings \(data\.sha256\)"):
        fit(tmp_path, data=Dataset(toy("rings", 5000)))
    with pytest.raises(ValueError, match=r"other settings \(schedule\.sigma_max\)"):
        train(MLP, Dataset(toy("grid", 5000)), EDM(0.002, 10.0), EDM_NET, CONFIG, out=tmp_path)
    (tmp_path / "loss.csv").open("a").write("9000,1.0,0,0\n")  # written after the checkpoint, then killed
    fit(tmp_path, replace(CONFIG, images=6400))  # going on for longer is fine
    assert np.genfromtxt(tmp_path / "loss.csv", delimiter=",", names=True)["images"].max() == 6400
    (tmp_path / "checkpoint.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        fit(tmp_path)


def test_labels_are_used_and_dropped(tmp_path):
    data = Dataset(toy("grid", 300), np.arange(300) % 3, ("a", "b", "c"))
    model = fit(tmp_path, replace(CONFIG, images=400, label_dropout=0.5), data=data, spec={**MLP, "classes": 3})
    assert (model.classes, model.class_names) == (3, ("a", "b", "c"))
    assert load_model(tmp_path).class_names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": 0}, "images = 0"),
        ({"lr": float("inf")}, "lr = inf"),
        ({"label_dropout": 1.5}, "label_dropout = 1.5 must be in 0 .. 1"),
        ({"weighting": "w"}, "weighting = 'w'"),
        ({"dtype": "int8"}, "dtype = 'int8'"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


@pytest.mark.parametrize(
    "spec",
    [
        {
            "name": "UNet",
            "channels": 3,
            "size": 16,
            "width": 16,
            "mult": [1, 2, 2],
            "blocks": [1, 2, 1],
            "attention": [1],
        },
        {"name": "UNet", "channels": 1, "size": 28, "width": 32, "patch": 2, "classes": 4, "embedding": "sinusoidal"},
        {"name": "ScoreNet"},
        {"name": "MLP", "dim": 5},
    ],
    ids=lambda s: s["name"] + str(s.get("size", "")),
)
def test_networks_keep_shape_and_take_labels(spec):
    net = build(spec).eval()
    shape = (spec["dim"],) if "dim" in spec else (spec.get("channels", 1), spec.get("size", 28), spec.get("size", 28))
    u, t = torch.zeros(3, *shape), torch.tensor([0.1, 0.5, 0.9])
    out = net(u, t, None)
    assert out.shape == u.shape
    classes = spec.get("classes", 0)
    if classes:
        assert torch.equal(net(u, t, torch.full((3,), classes)), out)


def test_scorenet_has_the_tutorials_size_and_scale():
    net = build({"name": "ScoreNet"}).eval()
    count = sum(p.numel() for p in net.parameters())
    assert 0.95e6 < count < 1.15e6
    schedule, u = TutorialVE(), torch.ones(1, 1, 28, 28)
    raw = [net(u, torch.tensor([t]), None) * float(schedule.sigma(t)) for t in (0.01, 0.9)]
    assert 0.2 < float(raw[0].detach().norm() / raw[1].detach().norm()) < 5


def test_bad_networks_are_named():
    for spec, message in (
        ({"name": "UNet", "channels": 1, "size": 0}, "number of pixels"),
        ({"name": "UNet", "channels": 1, "size": [28, "wide"]}, "height and width"),
        ({"name": "UNet", "channels": 1, "size": 28, "mult": [1], "blocks": [1, 1]}, "one entry a level"),
        ({"name": "UNet", "channels": 1, "size": 28, "embedding": "linear"}, "embedding = 'linear'"),
        ({"name": "MLP"}, "net MLP"),
        ({"name": "Perceiver"}, "net name = 'Perceiver'"),
    ):
        with pytest.raises(ValueError, match=message):
            build(spec)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spec", [{"name": "UNet", "channels": 1, "size": 28, "width": 16}, {"name": "ScoreNet"}])
def test_networks_run_in_half_precision(spec, dtype):
    torch.manual_seed(0)
    net = build(spec).eval()
    for p in net.parameters():
        if not p.any():
            p.data.normal_(std=0.05)
    u, t = torch.linspace(-1, 1, 784).reshape(1, 1, 28, 28), torch.tensor([0.7])
    full = net(u, t, None)
    half = net.to(dtype)(u.to(dtype), t, None)
    assert half.dtype == dtype
    assert net.features.freqs.dtype == torch.float32
    assert (half.float() - full).norm() < 0.05 * full.norm()


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["implicit", pytest.param("sliced", marks=pytest.mark.slow)])
def test_losses_without_a_target_learn_the_same_score(tmp_path, loss):
    """On N(0, 0.5^2) the score of x_t is -x / (0.25 + sigma^2)."""
    data = Dataset((0.5 * NoiseKey.of(0, range(4000)).normal(0, 2)).numpy())
    config = replace(CONFIG, images=30_000, batch=300, lr=3e-3, warmup=3000, loss=loss, checkpoint_every=30_000)
    model = train(MLP, data, EDM(0.05, 5.0), Parametrization("edm", "log_sigma/4", 0.5), config)
    t = np.full(200, 0.4)
    x = 0.64 * NoiseKey.of(1, range(200)).normal(0, 2)
    score = losses.score_at(model.net, t, None, model.schedule, model.parametrization, x)(x).detach()
    exact = -x / (0.25 + 0.16)
    assert (score - exact).norm() < 0.25 * exact.norm()


def test_implicit_score_matching_is_for_few_dimensions(tmp_path):
    with pytest.raises(ValueError, match="'implicit' takes a backward pass a dimension"):
        fit(tmp_path, replace(CONFIG, loss="implicit"), data=Dataset(np.zeros((10, 65), np.float32)))
