"""Networks of score_sde: the labels that each SDE gives them, textbook loops around them, and their checkpoints."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import denoised
import numpy as np
import pytest
import textbook
import torch
from torch import Tensor, nn

import fastscore as fs
from fastscore.adapters import from_score_sde, read_score_sde_checkpoint

LEVELS = 40  # N: more than beta_max, as their discrete steps need
X, Z = denoised.X, torch.from_numpy(np.random.default_rng(11).standard_normal((2 * LEVELS, *denoised.X.shape)))


class VPSDE:
    """What is read of their VPSDE."""

    beta_0, beta_1, N = 0.1, 20.0, LEVELS
    process = textbook.vp(lambda t: 0.1 + 19.9 * t, lambda t: 0.1 * t + 9.95 * t**2)
    table = textbook.ddpm_table(np.linspace(0.1 / LEVELS, 20.0 / LEVELS, LEVELS))
    discrete = np.linspace(0.1 / LEVELS, 20.0 / LEVELS, LEVELS)


class subVPSDE(VPSDE):
    """What is read of their subVPSDE."""

    process = textbook.subvp(lambda t: 0.1 + 19.9 * t, lambda t: 0.1 * t + 9.95 * t**2)


class VESDE:
    """What is read of their VESDE."""

    sigma_min, sigma_max, N = 0.01, 50.0, LEVELS
    process = textbook.ve(lambda t: 0.01 * 5000.0**t, lambda t: 2.0 * math.log(5000.0) * (0.01 * 5000.0**t) ** 2)
    discrete = np.exp(np.linspace(math.log(0.01), math.log(50.0), LEVELS))
    table = textbook.smld_table(discrete)


class Net(nn.Module):
    """Exact, as a network of theirs: labels in, minus sigma score out on VP, the score on VE."""

    def __init__(self, sde: Any, continuous: bool) -> None:
        super().__init__()
        self.sde, self.continuous = sde, continuous
        self.labels: list[Tensor] = []

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        self.labels.append(labels)
        ve = isinstance(self.sde, VESDE)
        if ve:
            sigma = float(labels[0]) if self.continuous else float(self.sde.discrete[::-1][int(labels[0])])
            alpha = 1.0
        else:
            process = self.sde.process if self.continuous else self.sde.table
            t = float(labels[0]) / (999.0 if self.continuous else 1.0)
            alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        eps = (x - alpha * denoised.estimate(x, torch.tensor(alpha), torch.tensor(sigma, dtype=torch.float64))) / sigma
        return -eps / sigma if ve else eps


def theirs(loop: Any, process: Any, times: Any, x: Tensor, *arguments: Any) -> Tensor:
    """A loop of the textbook on the same noise."""

    def D(x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
        levels = (torch.tensor(v, dtype=torch.float64) for v in (alpha, sigma))
        return denoised.estimate(torch.from_numpy(x).reshape(X.shape), *levels).numpy().reshape(len(x), -1)

    z = iter(Z[1:].numpy().reshape(len(Z) - 1, len(X), -1))
    return torch.from_numpy(loop(process, D, times, x.numpy().reshape(len(x), -1), z, *arguments)).reshape(X.shape)


def ours(model: fs.ScoreModel, solver: Any, grid: Any, y: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Our samples, in the range of the network."""
    ve = model.transform is not None
    sampler = fs.Sampler(model, solver=solver, grid=grid, start="state", batch=4, dtype=dtype)
    x = sampler.run(range(4), init=(2.0 * y - 1.0 if ve else y).to(dtype), noise=Z.to(dtype))
    return 0.5 * (x + 1.0) if ve else x


CONTINUOUS = [
    (sde, predictor)
    for sde in (VPSDE, subVPSDE, VESDE)
    for predictor in ("euler_maruyama", "reverse_diffusion", "ancestral_sampling")
    if sde is not subVPSDE or predictor != "ancestral_sampling"
]


@pytest.mark.parametrize(("sde", "predictor"), CONTINUOUS)
def test_continuous_networks_under_their_own_sampler(sde, predictor):
    y = X * (50.0 if sde is VESDE else 1.0)
    model = from_score_sde(Net(sde(), True), sde(), denoised.SHAPE, continuous=True)
    end = 1e-5 if sde is VESDE else 1e-3
    expected = theirs(textbook.published, sde.process, np.array([1.0, *[end] * LEVELS]), y, predictor, sde.discrete)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        x = ours(model, fs.ScoreSDE(predictor, None), fs.uniform(LEVELS), y, dtype).double()
        assert denoised.error(x, expected) < tolerance


@pytest.mark.parametrize(("sde", "loop", "solver"), [
    (VPSDE, textbook.ancestral_vp, fs.Ancestral("small")), (VPSDE, textbook.ddim, fs.DDIM()),
    (VPSDE, textbook.dpmpp_2m, fs.DPMpp2M()), (VESDE, textbook.ancestral_ve, fs.Ancestral("small")),
    (VESDE, textbook.dpmpp_2m, fs.DPMpp2M()), (VESDE, textbook.euler, fs.Euler()),
])  # fmt: skip
def test_networks_with_a_table_on_its_indices(sde, loop, solver):
    y = X * (50.0 if sde is VESDE else 1.0)
    net = Net(sde(), False)
    model = from_score_sde(net, sde(), denoised.SHAPE, continuous=False)
    times = (39.0, 31.0, 22.0, 17.0, 9.0, 4.0, 1.0, 0.0, -1.0)
    x = ours(model, solver, fs.Times(times), y)
    assert denoised.error(x, theirs(loop, sde.table, times, y)) < 1e-9
    labels = [float(label[0]) for label in net.labels]
    assert labels == [LEVELS - 1 - t if sde is VESDE else t for t in times[:-1]]
    assert net.labels[0].dtype == (torch.int64 if sde is VESDE else torch.float64)


def test_a_score_function_is_taken_as_it_is():
    for sde in (VPSDE, subVPSDE, VESDE):
        net = Net(sde(), True)

        def score(x: Tensor, t: Tensor, sde=sde, net=net) -> Tensor:
            std = torch.from_numpy(np.asarray(sde.process.sigma(t.numpy()))).reshape(-1, 1, 1, 1)
            return net(x, std.flatten()) if sde is VESDE else -net(x, 999.0 * t) / std

        models = [
            from_score_sde(net, sde(), denoised.SHAPE, continuous=True),
            from_score_sde(score, sde(), denoised.SHAPE, continuous=True, score_fn=True),
        ]
        a, b = (ours(model, fs.DDIM(), fs.Grid("logsnr", 5), X) for model in models)
        assert denoised.error(a, b) < 1e-9


def test_samples_are_in_the_range_of_images_here():
    """VE networks see images in [0, 1]; other ranges are said."""
    shape = denoised.SHAPE
    ve, vp = (from_score_sde(Net(sde(), True), sde(), shape, continuous=True) for sde in (VESDE, VPSDE))
    assert ve.transform is not None and vp.transform is None
    assert ve.transform(torch.tensor([[0.0, 0.5, 1.0]])).tolist() == [[-1.0, 0.0, 1.0]]
    assert from_score_sde(Net(VESDE(), True), VESDE(), shape, continuous=True, centered=True).transform is None
    assert from_score_sde(Net(VPSDE(), True), VPSDE(), shape, continuous=True, centered=False).transform is not None


def test_other_sdes_are_refused():
    class Other(VPSDE):
        """One that derives from theirs is read; this has no name of theirs."""

    assert from_score_sde(Net(VPSDE(), True), Other(), (2,), continuous=True).schedule == fs.VP()
    for sde in (object(), type("VESDE", (), {"sigma_min": 1.0})(), fs.VP()):
        with pytest.raises(ValueError, match="it must be a VPSDE, subVPSDE or VESDE of score_sde"):
            from_score_sde(Net(VPSDE(), True), sde, (2,), continuous=True)
    with pytest.raises(ValueError, match="score_sde has no table for its subVPSDE"):
        from_score_sde(Net(subVPSDE(), True), subVPSDE(), (2,), continuous=False)


NAMES = json.loads((Path(__file__).parents[1] / "data/score_sde_names.json").read_text())


@pytest.mark.parametrize("net", NAMES)
def test_averaged_weights_meet_their_names(net, tmp_path):
    """Names, shapes and order of the average of networks that their own code made."""
    shapes, averaged = NAMES[net]["state"], NAMES[net]["averaged"]
    model = {f"module.{name}": torch.full(shape, -1.0) for name, shape in shapes.items()}
    shadow = [torch.full(shapes[name], float(k)) for k, name in enumerate(averaged)]
    content = {"optimizer": {"state": {}}, "model": model, "ema": {"decay": 0.999, "shadow_params": shadow}, "step": 7}
    torch.save(content, tmp_path / "checkpoint.pth")
    state = read_score_sde_checkpoint(tmp_path / "checkpoint.pth")
    assert list(state) == list(shapes)
    assert all(float(state[name].flatten()[0]) == k for k, name in enumerate(averaged))
    fixed = set(shapes) - set(averaged)
    assert fixed == ({"sigmas", "all_modules.0.W"} if "all_modules.0.W" in shapes else {"sigmas"})
    assert all(bool((state[name] == -1.0).all()) for name in fixed)
    raw = read_score_sde_checkpoint(tmp_path / "checkpoint.pth", ema=False)
    assert all(bool((v == -1.0).all()) for v in raw.values())
    del shadow[3]
    torch.save(content, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match=r"checkpoint.pth: the average has \d+ tensors and the model \d+ to train"):
        read_score_sde_checkpoint(tmp_path / "checkpoint.pth")


class Touch:
    """An object that pickles as a call."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("executed"),)


def test_a_checkpoint_executes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {}, "ema": Touch()}, tmp_path / "evil.pth")
    (tmp_path / "broken.pth").write_bytes(b"x")
    torch.save([1], tmp_path / "list.pth")
    for name in ("evil", "broken", "list"):
        with pytest.raises(ValueError, match=f"{name}.pth is not a readable checkpoint of score_sde"):
            read_score_sde_checkpoint(tmp_path / f"{name}.pth")
    assert not (tmp_path / "executed").exists()
