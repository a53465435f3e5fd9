"""Sequences and point sets: samples that are neither points nor images."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fastscore.cli import main
from fastscore.data.load import Dataset, load
from fastscore.data.toys import circles
from fastscore.model.folder import load_model, save_model
from fastscore.model.nets import build
from fastscore.model.score import ScoreModel
from fastscore.process.continuous import EDM
from fastscore.process.grid import karras
from fastscore.process.parametrization import Parametrization
from fastscore.sampler import Sampler
from fastscore.solvers import DDIM
from fastscore.training.train import TrainConfig, train

SPEC = {"name": "Transformer", "tokens": 16, "dim": 2, "width": 32, "depth": 2, "classes": 0}
EDM_NET = Parametrization("edm", "log_sigma/4", 0.6)


def network(**options):
    torch.manual_seed(0)
    net = build({**SPEC, **options})
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return net.eval()


def test_point_sets_have_no_order_and_sequences_have_one():
    x, t, order = torch.linspace(-2, 2, 3 * 32).reshape(3, 16, 2), torch.linspace(-1, 1, 3), torch.randperm(16)
    with torch.no_grad():
        for ordered in (False, True):
            net = network(ordered=ordered)
            equal = torch.allclose(net(x[:, order], t), net(x, t)[:, order], rtol=1e-4, atol=1e-5)
            assert equal != ordered
        free = network(ordered=False)
        assert free(x[:, :5], t).shape == (3, 5, 2)  # any number of points
        assert not torch.allclose(free(x[:, :5], t), free(x, t)[:, :5], atol=1e-3)  # points see each other
        assert not torch.allclose(free(x, t + 1.0), free(x, t), atol=1e-3)
        labelled = network(classes=3)
        one, none = labelled(x, t, torch.tensor([1, 1, 1])), labelled(x, t)
        assert torch.equal(none, labelled(x, t, torch.tensor([3, 3, 3])))
        assert not torch.allclose(one, none, atol=1e-3)


def test_a_fresh_network_says_nothing_and_can_be_trained():
    net = build({**SPEC, "ordered": False})
    x = torch.ones(2, 16, 2)
    assert torch.equal(net(x, torch.zeros(2)), torch.zeros_like(x))  # head and branches start at zero
    for _ in range(3):  # head, then gates, then what they gate
        net(x, torch.zeros(2)).sum().backward()
        with torch.no_grad():
            for p in net.parameters():
                p -= 0.1 * p.grad
    assert all(p.grad is not None and (p.grad != 0).any() for p in net.parameters())


def test_samples_are_sets_and_depend_on_their_ids_alone(tmp_path):
    model = ScoreModel(network(ordered=False), (16, 2), EDM(), EDM_NET)
    save_model(tmp_path, model.net, {**SPEC, "ordered": False}, model, torch.float32)
    again = load_model(tmp_path)
    whole = Sampler(model, solver=DDIM(1.0), grid=karras(4), batch=8).run(range(11))
    assert whole.shape == (11, 16, 2)
    assert torch.equal(Sampler(again, solver=DDIM(1.0), grid=karras(4), batch=8).run([9, 2]), whole[[9, 2]])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "shape": [8, 2]}))
    with pytest.raises(ValueError, match=r"shape = \[8, 2\] but the net makes \[16, 2\]"):
        load_model(tmp_path)


@pytest.mark.parametrize(("options", "message"), [({"width": 30}, "multiple of heads"), ({"depth": 0}, "at least 1")])
def test_bad_sizes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build({**SPEC, **options})


def test_data_of_any_shape(tmp_path):
    sets = load("circles", toy_size=50)
    assert sets.shape == (16, 2)
    assert sets.network_range(np.arange(3)).shape == (3, 16, 2)
    assert not np.array_equal(load("circles", "test", 50).x, sets.x)
    np.save(tmp_path / "audio.npy", np.zeros((5, 100, 1)))
    assert load(str(tmp_path / "audio.npy")).shape == (100, 1)


def misfit(x):
    """Mean distance of a set's points from the circle that fits them best, of each set."""
    off = []
    for points in x:
        a = np.concatenate([2.0 * points, np.ones((len(points), 1))], 1)
        *centre, rest = np.linalg.lstsq(a, (points**2).sum(1), rcond=None)[0]
        off.append(np.abs(np.linalg.norm(points - centre, axis=1) - np.sqrt(rest + np.dot(centre, centre))).mean())
    return np.array(off)


@pytest.mark.slow
def test_the_command_trains_and_samples(tmp_path, capsys):
    def run(line):
        with pytest.raises(SystemExit) as ended:
            main(line.split())
        return ended.value.code, capsys.readouterr().err

    fit = f"train circles --unordered --out {tmp_path}/m --images 400 --batch 100 --width 16 --no-compile --quiet"
    assert run(fit + " --dtype fp32")[0] == 0
    assert load_model(tmp_path / "m").shape == (16, 2)
    assert run(f"sample {tmp_path}/m -n 5 --steps 3 --out {tmp_path}/x --quiet")[0] == 0
    with np.load(tmp_path / "x" / "samples.npz") as file:
        assert file["samples"].shape == (5, 16, 2)
    assert (tmp_path / "x" / "grid.png").exists()
    for line, message in (
        ("train circles --net mlp", "use --net transformer"),
        ("train rings --unordered", "--unordered belongs to"),
    ):
        code, said = run(f"{line} --out {tmp_path}/n")
        assert code == 2
        assert message in said


@pytest.mark.slow
@pytest.mark.nightly
def test_it_learns_circles(tmp_path):
    """16 points that lie on one circle: a law of the whole set, which no point can follow alone."""
    data = circles(20_000)
    config = TrainConfig(
        images=60_000, batch=200, warmup=1000, lr=3e-3, dtype="fp32", compile=False, checkpoint_every=10**6
    )
    spec = {**SPEC, "width": 48, "depth": 3, "ordered": False}
    model = train(spec, Dataset(data), EDM(), EDM_NET, config)
    x = Sampler(model, grid=karras(15), batch=100).run(range(300)).numpy()
    shuffled = np.random.default_rng(0).permutation(data[:300].reshape(-1, 2)).reshape(300, 16, 2)
    assert np.median(misfit(x)) < 2.0 * np.median(misfit(data[:300])) < 0.2 * np.median(misfit(shuffled))
    assert abs(x.std() / data.std() - 1.0) < 0.15
