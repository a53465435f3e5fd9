"""Loggers: what they hear, that they change nothing, and that what they raise ends nothing."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import fastscore as fs
from fastscore import chains
from fastscore.data.affine import Affine
from fastscore.data.toys import toy
from fastscore.engine import batches
from fastscore.engine.loop import Step
from fastscore.model.analytic import by_name

MODEL = by_name("mixture")


class Heard:
    """A logger that keeps what it hears."""

    def __init__(self):
        self.entries = []

    def log(self, data, *, step):
        self.entries.append((step, data))

    def of(self, key):
        return [data[key] for _, data in self.entries if key in data]


def all_of(**settings):
    heard = Heard()
    return heard, fs.Log(heard, every=0.0, values=True, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 6},
        {"solver": fs.Dopri5(rtol=0.1, atol=0.1)},
        pytest.param({"solver": fs.DPMAdaptive(rtol=0.3, atol=0.3)}, marks=pytest.mark.slow),
        pytest.param({"solver": fs.GottaGoFast(rtol=0.9, atol=0.9)}, marks=pytest.mark.slow),
        {"steps": 6, "parallel": fs.Picard(3)},
    ],
    ids=("plan", "dopri5", "dpm", "ggf", "picard"),
)
def test_samples_are_the_same_and_the_keys_are_those_of_the_table(settings):
    sampler, (heard, log) = fs.Sampler(MODEL, batch=8, **settings), all_of()
    assert sampler.run(range(20), log=log).equal(sampler.run(range(20)))
    assert [step for step, _ in heard.entries] == list(range(len(heard.entries)))
    last = heard.entries[-1][1]
    assert last["sample/samples"] == last["sample/samples_total"] == 20
    assert last["sample/samples_per_s"] > 0 and last["sample/elapsed_s"] > 0
    table = (Path(fs.__file__).parent / "output/README.md").read_text()
    for key in {k for _, data in heard.entries for k in data}:
        assert f"`{key}`" in table or f"`{key.replace('step_share', '')}`" in table or key[-6:] in ("median", "re_max")
    if "parallel" in settings:
        assert not heard.of("sample/x0")
        return
    shown = len(heard.of("sample/x0"))
    assert 1 <= shown <= 5 or isinstance(settings.get("solver"), fs.GottaGoFast)
    assert all(x.dtype == np.uint8 and x.ndim == 3 for x in heard.of("sample/x0"))
    if "solver" in settings:
        sizes = zip(*(heard.of(f"sample/step_share_{k}") for k in ("min", "median", "max")), strict=True)
        assert all(0 < low <= middle <= high <= 1 for low, middle, high in sizes)
        assert last["sample/evaluations"] == float(sampler.cost.nfe.double().mean())
        assert last["sample/rejected_share"] == sampler.cost.rejected_share
    else:
        assert last["sample/evaluations"] == sampler.plan.nfe and shown == 5
        assert len(heard.of("sample/samples")) > 7  # not at the end alone


def in_table(heard):
    table = (Path(fs.__file__).parent / "output/README.md").read_text()
    return all(f"`{key}`" in table for _, data in heard.entries for key in data)


def test_a_joint_sampler_tells_how_far_it_is():
    parts = {"a": fs.Part((2,), fs.VP()), "b": fs.Part((3,), fs.VP())}
    model = fs.JointModel(lambda u, t: {k: v * 0.5 for k, v in u.items()}, parts)
    sampler, (heard, log), told = fs.JointSampler(model, solver="heun", steps=3, batch=8), all_of(), []
    x, expected = sampler.run(range(20), log=log, progress=told.append), sampler.run(range(20))
    assert all(x[name].equal(expected[name]) for name in parts) and in_table(heard)
    last = heard.entries[-1][1]
    assert last["sample/samples"] == last["sample/samples_total"] == told[-1] == 20
    assert last["sample/evaluations"] == sampler.plans["a"].nfe
    assert len(heard.entries) > 3 * len(sampler.plans["a"].rows) and not heard.of("sample/x0")
    again, log = all_of()
    assert torch.cat([ids for ids, _ in sampler.stream(range(20), log=log)]).tolist() == list(range(20))
    assert len(again.entries) == len(heard.entries)
    for call in (sampler.run, sampler.stream):
        with pytest.raises(ValueError, match="is a function; give the object"):
            call(range(2), log=print)


@pytest.mark.parametrize("method", chains.METHODS)
def test_chains_tell_how_far_they_are_and_what_they_accept(method):
    def run(**more):
        start, p = torch.zeros(1, 2), lambda x: -x.square().sum(1)
        return chains.run(p, start, 0.8, 5, range(5), 1, method=method, spread=1.0, batch=3, **more)

    (heard, log), expected = all_of(), run()
    found = run(log=log)
    assert found.x.equal(expected.x) and found.acceptance.equal(expected.acceptance) and in_table(heard)
    assert heard.of("sample/steps") == [0.0, *map(float, range(1, 11)), 10.0]  # of two times three chains, and the end
    assert heard.entries[-1][1]["sample/steps_total"] == 10
    taken = heard.of("sample/acceptance")
    assert len(taken) == 11 and min(taken) >= 0.0 and max(taken) <= 1.0
    for at, some in ((4, slice(3)), (-1, slice(3, 5))):  # without the third, which fills the batch up
        assert taken[at] == pytest.approx(float(found.acceptance[some].mean()))
    assert taken == [1.0] * 11 if method == "ula" else len(set(taken)) > 3
    with pytest.raises(ValueError, match="is a function; give the object"):
        run(log=print)


def test_estimates_are_those_of_the_chosen_rows_in_the_units_of_the_data():
    model = fs.Sampler(MODEL).model
    model = replace(model, transform=Affine((3.0, -1.0), (2.0, 5.0)))
    sampler, steps, (heard, log) = fs.Sampler(model, steps=6, batch=8), [], all_of(rows=(1, 3, -1))
    sampler.run(range(20), log=log, callback=steps.append)
    shown = [(data["sample/row"], data["sample/x0_values"]) for _, data in heard.entries if "sample/row" in data]
    assert [row for row, _ in shown] == [1, 3, 6]
    for row, values in shown:
        assert np.array_equal(values, steps[row].x0.numpy())  # of the first micro-batch
    alone, log = all_of(rows=(1, 3, -1))
    sampler.run(range(20), log=log)
    for (_, with_callback), without in zip(shown, alone.of("sample/x0_values"), strict=True):
        assert np.array_equal(with_callback, without)
    with pytest.raises(ValueError, match=r"rows = \[7\]"):
        sampler.run(range(4), log=fs.Log(heard, rows=(7,)))


def test_rows_that_are_not_chosen_cost_no_copy(monkeypatch):
    sampler, asked, seen = fs.Sampler(MODEL, steps=6, batch=8), [], []
    loop = sampler.engine.loop
    monkeypatch.setattr(batches, "Step", lambda row, *rest: seen.append(row) or Step(row, *rest))
    run = type(loop).run

    def watched(self, noise=None, observer=None, estimate=()):
        asked.append([k for k in range(7) if k in estimate])
        return run(self, noise, observer, estimate)

    monkeypatch.setattr(type(loop), "run", watched)
    sampler.run(range(20), log=fs.Log(Heard(), rows=(2, 4)))
    assert asked == [[2, 4], [], []] and seen == [2, 4]
    graph = SimpleNamespace(run=lambda: asked.append("graph") or loop.result())
    vars(sampler.engine)["captured"] = graph
    asked.clear()
    sampler.run(range(20), log=fs.Log(Heard(), rows=(2, 4)))
    assert asked == [[2, 4], "graph", "graph"]  # after the first micro-batch it runs as without a callback


@pytest.mark.parametrize("solver", [fs.Dopri5(0.1, 0.1), fs.DPMAdaptive(), fs.GottaGoFast(rtol=0.9, atol=0.9)])
def test_estimates_of_adaptive_solvers_are_those_of_the_model(solver):
    sampler, errors = fs.Sampler(MODEL, solver=solver, batch=8), []
    engine = sampler.engine

    def look(done):
        lanes = engine.lanes
        at = (lanes.live & (lanes.stage > 0))[: lanes.lanes].nonzero()[:, 0]
        phi = torch.atan2(torch.ones(len(at)).double(), engine.method.lam(lanes.tau)[at].exp())
        exact = MODEL.net(lanes.buffer[0][at], phi.float())
        errors.extend((engine.estimates(at) - exact).abs().flatten().tolist())

    sampler.run(range(8), progress=look)
    assert errors and max(errors) < 1e-3


def test_what_a_log_shows_of_an_adaptive_run_are_the_first_samples():
    sampler, exact = fs.Sampler(MODEL, solver=fs.DPMAdaptive(), batch=8), []
    lanes = sampler.engine.lanes

    def look(done):
        held = lanes.live & (lanes.stage > 0)
        at = (held[:8] & (lanes.id[:8] == torch.arange(8))).nonzero()[:, 0]
        phi = torch.atan2(torch.ones(len(at)).double(), sampler.engine.method.lam(lanes.tau)[at].exp())
        exact.append(MODEL.net(lanes.buffer[0][at], phi.float()).numpy())

    class Shown(Heard):
        def log(self, data, *, step):
            super().log(data, step=step)
            if "sample/x0_values" in data:
                assert np.allclose(data["sample/x0_values"], exact[-1], atol=1e-3)

    shown = Shown()
    sampler.run(range(20), progress=look, log=fs.Log(shown, rows=200, values=True))
    assert len(shown.of("sample/x0")) > 3 and shown.entries[-1][1]["sample/samples"] == 20


def test_a_logger_that_raises_loses_no_sample(tmp_path):
    class Down:
        def log(self, data, step):
            raise ConnectionError("no network")

    sampler = fs.Sampler(MODEL, steps=4, batch=8)
    with pytest.warns(UserWarning, match="Down raised ConnectionError: no network; it is told nothing more") as told:
        x = sampler.run(range(20), log=fs.Log(Down(), every=0.0))
    assert x.equal(sampler.run(range(20))) and len(told) == 1
    heard = Heard()
    with pytest.warns(UserWarning, match="ZeroDivisionError"):  # a picture that cannot be made, too
        assert sampler.run(range(20), log=fs.Log(heard, media=lambda picture: 1 / 0)).equal(x)
    with pytest.warns(UserWarning, match="no network"):
        fs.draw(sampler, sampler.request(range(20)), tmp_path / "out", log=Down())
    assert np.array_equal(np.load(tmp_path / "out/samples.npz")["samples"], x.numpy())


def test_what_is_no_logger_is_refused_with_the_remedy():
    sampler = fs.Sampler(MODEL, steps=2)
    writer = SimpleNamespace(add_scalar=lambda tag, scalar_value, global_step=None: None)
    for wrong, remedy in (
        (print, "is a function; give the object whose method it is"),
        (logging.getLogger(), "does not take"),
        (writer, "the adapter of three lines"),
        (5, "must have a method log"),
    ):
        with pytest.raises(ValueError, match=remedy):
            sampler.run(range(2), log=wrong)
        with pytest.raises(ValueError, match=remedy):
            fs.train({"name": "MLP", "dim": 2}, toy("moons", 10), log=wrong)
    with pytest.raises(ValueError, match="every = -1"):
        fs.Log(Heard(), every=-1)
    with pytest.raises(ValueError, match="at least 0"):
        fs.Log(Heard(), rows=-1)


def test_a_run_on_disk_is_one_run_to_a_logger(tmp_path):
    sampler, (heard, log) = fs.Sampler(MODEL, steps=4, batch=8), all_of(first=100)
    fs.draw(sampler, sampler.request(range(40)), tmp_path / "out", log=log, shard=8)
    done = heard.of("sample/samples")
    assert done == sorted(done) and done[-1] == 40 and set(heard.of("sample/samples_total")) == {40}
    assert heard.of("sample/row") == [1, 2, 3, 4]  # of the first shard alone
    assert [step for step, _ in heard.entries] == [100 + k for k in range(len(heard.entries))]
    plain = fs.draw(sampler, sampler.request(range(40)), tmp_path / "plain", shard=8)
    assert plain["shards"] == json.loads((tmp_path / "out/run.json").read_text())["shards"]


def test_training_is_the_same_and_tells_loss_rate_and_speed():
    config = fs.TrainConfig(images=300, batch=64, compile=False, dtype="fp32")
    heard, log = all_of()
    told, losses = [], lambda seen, total, figures: told.append(figures["loss"])
    a, b = (
        fs.train({"name": "MLP", "dim": 2, "width": 8}, toy("moons", 100), config=config, log=each, progress=losses)
        for each in (log, None)
    )
    assert all(x.equal(y) for x, y in zip(a.net.parameters(), b.net.parameters(), strict=True))
    assert [step for step, _ in heard.entries] == heard.of("train/examples") == [64, 128, 192, 256, 300]
    assert heard.of("train/loss") == pytest.approx(told[:5])
    assert heard.of("train/lr") == [config.lr_at(k) for k in (0, 64, 128, 192, 256)]
    assert heard.of("train/ema_decay")[1] == 0.5**17.97
    quiet = Heard()
    fs.train({"name": "MLP", "dim": 2, "width": 8}, toy("moons", 100), config=config, log=fs.Log(quiet, every=1e9))
    weights = [64, 64, 64, 64, 44]
    assert [step for step, _ in quiet.entries] == [300]
    assert quiet.of("train/loss") == pytest.approx([np.mean(told[:5])]) and len(weights) == 5


def test_the_command_line_logs_to_a_file_and_to_a_run_of_wandb(run, tmp_path, monkeypatch):
    file = tmp_path / "run.jsonl"
    argv = ("sample", "analytic:mixture", "--steps", "3", "--quiet", "--network", "own", "-n")
    for k, n in enumerate((30, 40)):
        assert run(*argv, n, "--out", tmp_path / f"{n}", "--log", f"jsonl:{file}")[0] == 0
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        assert [line["step"] for line in lines] == [0, 1][: k + 1] and lines[-1]["sample/samples"] == n
    (tmp_path / "mine.txt").write_text("mine\n")
    code, _, error = run(*argv, 3, "--out", tmp_path / "no", "--log", f"jsonl:{tmp_path / 'mine.txt'}")
    assert code == 2 and "is no log of these, as its line 1 shows" in error
    assert (tmp_path / "mine.txt").read_text() == "mine\n" and not (tmp_path / "no").exists()
    code, _, error = run(*argv, 3, "--out", tmp_path / "no", "--log", "mlflow:x")
    assert code == 2 and "jsonl:FILE, trackio:PROJECT, wandb:PROJECT" in error

    class Run(Heard):
        finished = False

        def finish(self):
            self.finished = True

    Run.__module__, started = "wandb.sdk", Run()
    module = SimpleNamespace(init=lambda project, config: started, Image=lambda picture: ("image", picture.shape))
    monkeypatch.setitem(sys.modules, "wandb", module)
    assert run(*argv, 30, "--out", tmp_path / "wandb", "--log", "wandb:mine")[0] == 0
    assert started.finished and started.of("sample/x0")[0] == ("image", (384, 384, 3))
    monkeypatch.setitem(sys.modules, "wandb", None)
    code, _, error = run(*argv, 3, "--out", tmp_path / "no", "--log", "wandb:mine")
    assert code == 3 and "pip install wandb" in error


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["wandb", "trackio", "tensorboard"])
@pytest.mark.filterwarnings("error:.*(skipped|Failed)")
def test_the_loggers_themselves_take_figures_and_pictures(kind, tmp_path, monkeypatch):
    """Grey images and densities in colour, offline and without a word of complaint."""
    monkeypatch.chdir(tmp_path)
    for key, value in (("WANDB_MODE", "offline"), ("WANDB_SILENT", "true"), ("TRACKIO_DIR", str(tmp_path / "trackio"))):
        monkeypatch.setenv(key, value)
    package = pytest.importorskip(kind, reason=f"pip install {kind}")
    if kind == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        class TensorBoard(SummaryWriter):
            def log(self, data, step):
                for key, value in data.items():
                    put = partial(self.add_image, dataformats="HWC") if np.ndim(value) else self.add_scalar
                    put(key, value, step)

        run = TensorBoard(tmp_path / "board")
    else:
        run = package.init(project="p")
    for model, n in ((fs.load_model("fashion"), 4), (MODEL, 64)):
        fs.Sampler(model, steps=4, batch=n).run(range(n), log=run)
    if kind == "tensorboard":
        run.close()
        events = b"".join(p.read_bytes() for p in (tmp_path / "board").iterdir())
        assert events.count(b"\x89PNG") == 8 and b"sample/samples_per_s" in events
    else:
        run.finish()
        pictures = [len(Image.open(p).getbands()) for p in tmp_path.rglob("*.png")]
        assert len(pictures) == 8 and {*pictures} <= {3, 4}
