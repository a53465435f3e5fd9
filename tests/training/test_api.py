"""Training as people call it: one's own module and array, what is refused and why, every pair of the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

import fastscore as fs
from fastscore.cli import main
from fastscore.data.load import Dataset
from fastscore.model.folder import load_model, load_weights
from fastscore.model.nets import build
from fastscore.process.names import SCHEDULES, named_schedule
from fastscore.process.parametrization import PREDICTIONS, Parametrization
from fastscore.report.plots import curves, plot_loss
from fastscore.training import recipe
from fastscore.training.train import TrainConfig, _resolved, train

SHORT = TrainConfig(images=64, batch=32, compile=False, dtype="fp32")
POINTS = np.random.default_rng(0).normal(1.0, 2.0, (50, 2)).astype(np.float32)


class Mine(nn.Module):
    """A network as a tutorial has it, with dropout, a frozen layer and one that the loss does not reach."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.dropout, self.last = nn.Linear(3, 16), nn.Dropout(0.1), nn.Linear(16, 2)
        self.frozen, self.unused = nn.Linear(16, 16).requires_grad_(False), nn.Linear(2, 2)

    def forward(self, u, c_noise, cond=None):
        h = self.dropout(torch.relu(self.first(torch.cat([u, c_noise[:, None]], 1))))
        return self.last(h + self.frozen(h))


def run(*arguments):
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    return end.value.code


def test_a_module_of_ones_own_is_trained_where_it_is(tmp_path):
    net = Mine()
    net.dropout.eval()
    net(torch.ones(1, 2), torch.ones(1)).sum().backward()  # a gradient left over from something else
    before, generator = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    model = fs.train(net, POINTS, fs.VP(), Parametrization("eps", "t/T"), SHORT, out=tmp_path)
    assert torch.equal(torch.get_rng_state(), generator)
    after = net.state_dict()
    assert {k for k in before if not torch.equal(before[k], after[k])} == {
        "first.weight", "first.bias", "last.weight", "last.bias",
    }  # fmt: skip
    assert [m.training for m in net.modules()] == [True, True, False, True, True, True]
    assert not any(m.training for m in model.net.modules())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.safetensors", "loss.csv", "model.safetensors"]
    again = load_weights(tmp_path / "model.safetensors", Mine())
    for saved, trained in zip(again.parameters(), model.net.parameters(), strict=True):
        torch.testing.assert_close(saved, trained, rtol=1e-3, atol=1e-5)
    x = fs.Sampler(model, steps=5, batch=4).run(range(4))
    assert x.shape == (4, 2) and torch.isfinite(x).all()
    fresh = fs.train(Mine(), POINTS, fs.VP(), Parametrization("eps", "t/T"), SHORT)
    other = Mine()
    other.dropout.eval()
    resumed = fs.train(other, POINTS, fs.VP(), Parametrization("eps", "t/T"), replace(SHORT, images=96), out=tmp_path)
    assert not all(torch.equal(a, b) for a, b in zip(fresh.net.parameters(), resumed.net.parameters(), strict=True))


def test_a_stopped_run_of_a_module_goes_on_to_the_same_weights(tmp_path):
    """With every kind of setting that a checkpoint must carry: Adam, no average, a weighting that is a function."""
    config = replace(SHORT, optimizer="adam", ema=None, weighting=lambda t: t**2, images=192, cooldown=0.0, warmup=0)
    p = Parametrization("score", "t", 2.0, "unit")
    whole = train(Mine().eval(), POINTS, fs.VE(), p, config)
    train(Mine(), POINTS, fs.VE(), p, replace(config, images=96), out=tmp_path)
    parts = train(Mine(), POINTS, fs.VE(), p, config, out=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(whole.net.parameters(), parts.net.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"other settings \(train\.weighting\)"):
        train(Mine(), POINTS, fs.VE(), p, replace(config, weighting=lambda t: t), out=tmp_path)


def test_data_may_be_arrays_of_any_rank():
    """Points, sequences, latent images as they are; bytes as images in -1 .. 1."""
    seen = []

    class Look(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.zeros(()))

        def forward(self, u, c_noise, cond=None):
            seen.append(u)
            return self.gain * u

    p = Parametrization("edm", "sigma", 1.0, "none")
    config = replace(SHORT, images=8, batch=8, times="uniform")
    for x in (POINTS, torch.full((9, 5, 3), 2.0), np.full((9, 4, 6, 6), 3.0), np.full((9, 6, 6, 3), 255, np.uint8)):
        model = train(Look(), x, fs.EDM(1e-6, 2e-6), p, config)
        values = x[0, 0, 0] if isinstance(x, np.ndarray) and x.dtype == np.uint8 else x
        shape = (3, 6, 6) if isinstance(x, np.ndarray) and x.dtype == np.uint8 else tuple(x.shape[1:])
        assert model.shape == shape == seen[-1].shape[1:]
        if values is not POINTS:
            expected = 1.0 if values is not x else float(x.flatten()[0] if torch.is_tensor(x) else x.flat[0])
            assert torch.allclose(seen[-1], torch.full_like(seen[-1], expected), atol=1e-4)


def test_what_cannot_be_trained_is_refused_with_the_remedy(tmp_path):
    beta = fs.FunctionBeta(lambda t: 0.1 + 19.9 * np.sin(0.5 * np.pi * t) ** 2)
    with pytest.raises(ValueError, match=r"FunctionBeta holds Python functions .*; leave out the folder"):
        train(Mine(), POINTS, fs.VP(beta), config=SHORT, out=tmp_path / "a")
    assert not (tmp_path / "a").exists()
    assert torch.isfinite(fs.Sampler(train(Mine(), POINTS, fs.VP(beta), config=SHORT), steps=5).run(range(2))).all()
    pair = fs.Pair(lambda t: 1 - t, lambda t: t)
    with pytest.raises(ValueError, match="Pair holds Python functions"):
        train(Mine(), POINTS, pair, config=SHORT, out=tmp_path / "a")
    train(Mine(), POINTS, pair, config=SHORT)
    for schedule in (fs.Flow(), fs.Pair(lambda t: 1 - t, lambda t: t)):
        with pytest.raises(ValueError, match=r"'log_sigma/4' is infinite at T .* take label 'tanh'"):
            train(Mine(), POINTS, schedule, Parametrization("edm", "log_sigma/4"), SHORT)
        with pytest.raises(ValueError, match="infinite at t = 1, so it is no density"):
            train(Mine(), POINTS, schedule, Parametrization("v", "t"), replace(SHORT, times="importance"))
    with pytest.raises(ValueError, match="takes 3 classes, and the data have no labels"):
        train({"name": "MLP", "dim": 2, "classes": 3}, POINTS, config=SHORT)
    for t_end in (0.0, -1.0, 2.0):
        with pytest.raises(ValueError, match=f"t_end = {t_end} must lie between VP's T = 1.0"):
            train(Mine(), POINTS, fs.VP(), config=replace(SHORT, t_end=t_end))
    with pytest.raises(ValueError, match="lambda\\(t\\) must be finite and at least 0"):
        train(Mine(), POINTS, fs.VP(), config=replace(SHORT, weighting=lambda t: -t))
    with pytest.raises(ValueError, match="must be at least one example"):
        train(Mine(), np.full((3, 2), np.nan), config=SHORT)
    with pytest.raises(ValueError, match="another --out"):  # it is another run's
        train(Mine(), POINTS, fs.VP(), config=replace(SHORT, lr=1e30, warmup=0, clip=0))
    for bad, message in (({"optimizer": "sgd"}, "adamw, adam"), ({"warmup": -1}, "at least 0"), ({"ema": -1.0}, "ema")):
        with pytest.raises(ValueError, match=message):
            replace(SHORT, **bad)


@pytest.mark.parametrize("times", ["uniform", "lognormal", "importance"])
@pytest.mark.parametrize("schedule", [fs.VP(), fs.EDM(), fs.discrete_vp()], ids=lambda s: type(s).__name__)
def test_training_ends_at_t_end(schedule, times):
    """The least noisy time that a network is called with, and times beyond it still are drawn."""
    seen = []

    class Look(Mine):
        def forward(self, u, c_noise, cond=None):
            seen.append(c_noise)
            return super().forward(u, c_noise, cond)

    end = float(schedule.T) / 4
    p = Parametrization("v", "t", 2.0, "unit")
    train(Look(), POINTS, schedule, p, replace(SHORT, images=2000, batch=500, times=times, t_end=end, mean=0.0))
    t = torch.cat(seen)
    assert t.min() >= end * (1 - 1e-6)
    assert t.max() <= schedule.T
    assert t.max() > end


def test_pure_noise_can_be_trained_on():
    """Times up to T itself, where alpha = 0, with every prediction and weighting: finite losses."""
    for schedule, prediction, weighting in product(
        (fs.Flow(), fs.Pair(lambda t: np.cos(0.5 * np.pi * t), lambda t: np.sin(0.5 * np.pi * t))),
        PREDICTIONS,
        ("edm", "simple", "sigma2", "likelihood"),
    ):
        p = Parametrization(prediction, "tanh", 2.0, "unit")
        config = replace(SHORT, images=32, times="uniform", weighting=weighting)
        model = train(Mine(), POINTS, schedule, p, config)
        with torch.no_grad():
            t = np.array([schedule.T])
            u, label = torch.ones(1, 2), torch.from_numpy(p.c_noise(schedule, t)).float()
            assert torch.isfinite(model.net(u, label)).all()
        from fastscore.training.losses import weights

        assert np.all(np.isfinite(weights(weighting, schedule, p, np.array([schedule.T, 0.5 * schedule.T]))))


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_command_accepts_every_pair_and_describes_it(name):
    """Labels of order one, unit scaling, finite at both ends; ScoreNet on its own SDE as in its tutorial."""
    schedule = named_schedule(name, fs.EDM())
    for prediction, (net, shape) in product(
        PREDICTIONS, (("mlp", (2,)), ("unet", (1, 8, 8)), ("scorenet", (1, 28, 28)), ("transformer", (16, 2)))
    ):
        p = recipe.parametrize(prediction, 0.7, net=net, schedule=schedule)
        own = net == "scorenet" and name == "tutorial" and prediction == "score"
        assert (p.scaling, p.label) == (("none", "t/T") if own else ("unit", "tanh"))
        patch = {"patch": 1} if net == "unet" else {}
        spec = recipe.describe(shape, schedule, p, net=net, width=16 if net == "mlp" else None, **patch)
        if net == "scorenet":
            assert (spec["base"], spec["scale"]) == (25.0 if own else None, 30.0)
        if net == "mlp":
            module = build(spec)
            t = np.array([schedule.t_end, schedule.T])
            u, label = torch.ones(2, *shape), torch.from_numpy(p.c_noise(schedule, t)).float()
            assert label.abs().max() <= 1.0
            assert module(u, label, None).shape == u.shape


def test_smld_reaches_as_far_as_the_data(tmp_path):
    """The default sigma_max of 1 would not: samples of data of std 2 came out too narrow."""
    data = Dataset(np.array([[0.0, 0.0], [3.0, 4.0], [1.0, 1.0]], np.float32))
    assert recipe.farthest(data) == 5.0
    np.save(tmp_path / "x.npy", np.repeat(data.x, 20, 0))
    common = (
        "train",
        tmp_path / "x.npy",
        "--images",
        32,
        "--width",
        8,
        "--no-compile",
        "--quiet",
        "--schedule",
        "smld",
    )
    assert run(*common, "--out", tmp_path / "a") == 0
    assert load_model(tmp_path / "a").schedule.sigmas[-1] == pytest.approx(5.0)
    assert run(*common, "--out", tmp_path / "b", "--sigma-max", 2) == 0
    assert load_model(tmp_path / "b").schedule.sigmas[-1] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("schedule", "times"),
    [(fs.smld(10), "uniform"), (fs.DiscreteVE((0.1, 1.0)), "uniform"), (fs.VE(), "lognormal"),
     (fs.discrete_vp(), "lognormal")],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)  # fmt: skip
def test_times_suit_the_schedule_and_a_choice_stays(schedule, times):
    p = fs.Parametrization("edm", "tanh", 1.0, "unit")
    data = Dataset.of(POINTS)
    assert _resolved(TrainConfig(), schedule, p, data).times == times
    for chosen in ("uniform", "lognormal"):
        assert _resolved(TrainConfig(times=chosen), schedule, p, data).times == chosen


def test_the_command_has_the_settings(tmp_path):
    np.save(tmp_path / "x.npy", POINTS)
    plain = ("--optimizer", "adam", "--no-ema", "--warmup", 0, "--cooldown", 0, "--grad-clip", 0, "--weight-decay", 0)
    options = ("--scaling", "none", "--prediction", "score", "--embedding", "sinusoidal", *plain)
    common = ("train", tmp_path / "x.npy", "--images", 64, "--width", 8, "--no-compile", "--quiet")
    assert run(*common, "--out", tmp_path / "a", "--schedule", "ddpm", "--times", "uniform", *options) == 0
    config = json.loads((tmp_path / "a/config.json").read_text())
    assert {k: config["parametrization"][k] for k in ("prediction", "label", "scaling")} == {
        "prediction": "score", "label": "t/T", "scaling": "none",
    }  # fmt: skip
    assert (config["net"]["embedding"], config["net"]["scale"]) == ("sinusoidal", 1000.0)
    from safetensors import safe_open

    with safe_open(tmp_path / "a/checkpoint.safetensors", "pt") as file:
        saved = json.loads(file.metadata()["progress"])["settings"]["train"]
        assert not [k for k in file.keys() if k.startswith("ema.")]
    wanted = {
        "optimizer": "adam", "ema": None, "warmup": 0, "cooldown": 0.0, "clip": 0.0, "weight_decay": 0.0,
        "weighting": "sigma2",
    }  # fmt: skip
    assert {k: saved[k] for k in wanted} == wanted
    assert torch.isfinite(fs.Sampler(load_model(tmp_path / "a"), steps=5).run(range(2))).all()


@pytest.mark.parametrize("loss", [[0.5, 0.2, 0.1], [0.3, -0.2, -4.0], [-3.0, -5.0, -5.1]])
def test_losses_of_either_sign_are_drawn(tmp_path, loss, monkeypatch):
    """Implicit and sliced score matching end below zero: a logarithmic axis showed nothing."""
    (tmp_path / "loss.csv").write_text("images,loss\n" + "".join(f"{k},{v}\n" for k, v in enumerate(loss)))
    figures = []
    save = curves.save
    monkeypatch.setattr(curves, "save", lambda figure, *to: (figures.append(figure), save(figure, *to)))
    plot_loss(tmp_path / "loss.csv", tmp_path / "loss.png")
    axes = figures[0].axes[0]
    shown = axes.transData.transform(np.stack([np.arange(3.0), loss], 1))[:, 1]
    frame = axes.get_window_extent()
    assert np.all((shown > frame.y0) & (shown < frame.y1))
    assert len(set(shown.round(3))) == 3
    assert (tmp_path / "loss.png").stat().st_size > 1000
