"""draw: a run on disk from Python is the run of the command line, to the byte."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch

from fastscore.cli import main
from fastscore.engine.trajectory import Traced, trajectory
from fastscore.execution import Execution
from fastscore.model.analytic import by_name
from fastscore.model.folder import load_model
from fastscore.model.score import ScoreModel
from fastscore.output.run import draw, files, refuse_earlier_run, versions
from fastscore.output.store.npz import mapped
from fastscore.process.continuous import EDM, VP
from fastscore.process.parametrization import Parametrization
from fastscore.sampler import Sampler


def points(**settings):
    return Sampler(by_name("gaussian"), schedule=VP(), steps=3, **settings)


def constant(u, c_noise, cond=None):
    return torch.full_like(u, 0.1)


def constant_sampler(shape, **settings):
    """A sampler of the model whose every estimate of x0 is 0.1."""
    return Sampler(ScoreModel(constant, shape, EDM(), Parametrization("x0"), **settings), steps=1, batch=2)


def arrays_of(folder):
    with np.load(folder / "samples.npz") as saved:
        return dict(saved)


@pytest.mark.parametrize(
    ("argv", "sampler", "request_of"),
    [
        (
            "analytic:gaussian --ids 17,3-5 --solver em --steps 6 --seed 7 --network own",
            lambda: Sampler(by_name("gaussian"), schedule=VP(), solver="em", steps=6),
            {"ids": [17, 3, 4, 5], "seed": 7},
        ),
        (
            "fashion -n 3 --batch 2 --steps 2 --network own --png",
            lambda: Sampler(load_model("fashion"), steps=2, execution=Execution(batch=2)),
            {"ids": range(3), "labels": "random"},
        ),
    ],
    ids=["points", "images"],
)
def test_the_command_and_draw_write_the_same_bytes(tmp_path, argv, sampler, request_of):
    with pytest.raises(SystemExit) as end:
        main(["sample", *argv.split(), "--device", "cpu", "--quiet", "--out", str(tmp_path / "command")])
    assert end.value.code == 0
    drawer = sampler()
    run = draw(drawer, drawer.request(**request_of), tmp_path / "python", png="--png" in argv)
    names = [f.relative_to(tmp_path / "python") for f in (tmp_path / "python").rglob("*") if f.is_file()]
    assert len(names) == (6 if "--png" in argv else 3)
    for name in names:
        one, other = (tmp_path / where / name for where in ("python", "command"))
        if name.name == "run.json":
            one, other = json.loads(one.read_text()), json.loads(other.read_text())
            assert one == run
            same = set(drawer.record()) | {"versions", "threads"}
            assert same <= set(one)
            assert {k: one[k] for k in same} == {k: other[k] for k in same}
            assert set(other) - set(one) == {"command"}
        else:
            assert one.read_bytes() == other.read_bytes(), name


def test_a_second_run_into_a_folder_is_refused(tmp_path):
    sampler = points()
    draw(sampler, sampler.request([1]), tmp_path)
    before = (tmp_path / "samples.npz").read_bytes()
    with pytest.raises(
        ValueError,
        match=r"holds a run with other settings \(ids: '1' there, '2' here\); choose another",
    ):
        draw(sampler, sampler.request([2]), tmp_path)
    assert draw(sampler, sampler.request([1]), tmp_path).pop("already_complete")
    with pytest.raises(ValueError, match="already holds"):
        refuse_earlier_run(tmp_path)
    assert (tmp_path / "samples.npz").read_bytes() == before
    draw(sampler, sampler.request([2]), tmp_path, overwrite=True)
    assert arrays_of(tmp_path)["ids"].tolist() == [2]
    assert files(tmp_path) == ["samples.npz", "grid.png", "run.json"]


def test_a_run_that_fails_leaves_the_earlier_one_and_nothing_else(tmp_path):
    sampler = constant_sampler((1, 4, 4))
    draw(sampler, sampler.request(range(3)), tmp_path, png=True)
    before = {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    broken = constant_sampler((1, 4, 4))
    stream = broken.stream

    def half(request, **settings):
        yield next(stream(request, **settings))
        raise FloatingPointError("sample 2 became NaN")

    broken.stream = half
    with pytest.raises(FloatingPointError):
        draw(broken, broken.request(range(3)), tmp_path, png=True, overwrite=True)
    assert {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()} == before
    assert sorted(f.name for f in tmp_path.iterdir()) == ["grid.png", "png", "run.json", "samples.npz"]


def test_what_each_sample_was_told_stands_beside_it(tmp_path):
    classes = constant_sampler((2,), classes=4, null=4)
    draw(classes, classes.request(range(3), 5, labels=[3, 0, 4]), tmp_path / "a", extra_arrays={"mask": np.ones(2)})
    saved = arrays_of(tmp_path / "a")
    assert list(saved) == ["samples", "ids", "mask", "labels"]
    assert saved["labels"].tolist() == [3, 0, 4]
    tensors = constant_sampler((2,), cond_shape=(3,), null=torch.zeros(3))
    cond = torch.arange(6.0).reshape(2, 3)
    run = draw(tensors, tensors.request([5, 6], [9, 2**64 - 1], cond=cond), tmp_path / "b", settings={"model": "mine"})
    saved = arrays_of(tmp_path / "b")
    assert list(saved) == ["samples", "ids", "cond", "seeds"]
    assert np.array_equal(saved["cond"], cond.numpy())
    for dtype in (torch.int64, torch.bool, torch.bfloat16):  # tensors of integers are no labels
        draw(tensors, tensors.request([5, 6], cond=cond.to(dtype)), tmp_path / str(dtype))
        assert np.array_equal(arrays_of(tmp_path / str(dtype))["cond"], cond.to(dtype).float().numpy())
    assert (saved["seeds"].dtype, saved["seeds"].tolist()) == (np.uint64, [9, 2**64 - 1])
    assert run["settings"] == {"seed": "one a sample", "num": 2, "model": "mine"}


@pytest.mark.parametrize(
    ("make", "asked", "settings"),
    [
        (lambda: constant_sampler((2,)), {"ids": range(11), "seed": range(11)}, {"shard": 4}),
        (
            lambda: constant_sampler((3, 4, 5), classes=3),
            {"ids": range(9), "labels": "random"},
            {"shard": 4, "extra_arrays": {"mask": np.ones((2, 3)), "name": "é", "count": 3}},
        ),
        (lambda: constant_sampler((1, 4, 4), classes=3), {"ids": range(5), "labels": 1}, {"format": "adm-npz"}),
        (lambda: constant_sampler((2,)), {"ids": []}, {}),
    ],
    ids=["points", "images", "adm", "no samples"],
)
def test_the_file_of_samples_has_the_bytes_of_savez(tmp_path, make, asked, settings):
    drawer = make()
    draw(drawer, drawer.request(**asked), tmp_path / "out", sheet=lambda x: np.zeros((1, 1, 1), np.uint8), **settings)
    arrays = arrays_of(tmp_path / "out")
    np.savez(tmp_path / "again.npz", **arrays)
    assert (tmp_path / "out/samples.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()
    for name, x in arrays.items():
        found = mapped(tmp_path / "out/samples.npz", name)
        assert (found.dtype, found.shape) == (x.dtype, x.shape) and (found == x).all()


def test_a_run_that_ends_has_its_samples_on_disk_twice_and_no_more(tmp_path):
    drawer, seen = constant_sampler((1, 32, 32)), []

    def sheet(x):
        seen.append((type(x), sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file())))
        return np.zeros((8, 8, 1), np.uint8)

    draw(drawer, drawer.request(range(64)), tmp_path, shard=16, sheet=sheet)
    assert seen[0][0] is np.memmap  # what the picture does not look at is not read
    assert 2 * 64 * 32 * 32 < seen[0][1] < 2.2 * 64 * 32 * 32


def test_the_record_says_when_and_with_what(tmp_path):
    sampler = points(batch=2)
    request = sampler.request(range(3), 2**64 - 1)
    run = draw(sampler, request, str(tmp_path), started=time.perf_counter() - 100.0, command="mine")
    assert run == json.loads((tmp_path / "run.json").read_text())
    assert run["settings"] == {"seed": 2**64 - 1, "num": 3}
    assert 100.0 <= run["timings"]["setup_s"] < 160.0
    assert run["timings"]["first_batch_s"] <= run["timings"]["sampling_s"]
    assert (run["command"], run["versions"], run["threads"]) == ("mine", versions(), torch.get_num_threads())
    assert run["execution"] == sampler.execution.to_dict()


def test_a_sheet_of_ones_own(tmp_path):
    sampler = points()
    sheets = []
    draw(
        sampler,
        sampler.request(range(4)),
        tmp_path,
        sheet=lambda x: sheets.append(x.shape) or np.zeros((5, 6, 3), np.uint8),
    )
    assert sheets == [(4, 2)]
    assert (tmp_path / "grid.png").exists()


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        ((1, 4, 4), {"subdirs": True}, "add png, or leave subdirs out"),
        ((3,), {"png": True}, r"shape \(3,\) are not images; leave png out"),
        ((2, 4, 4), {"png": True}, "1 or 3 channels; this model has 2; leave png out"),
    ],
)
def test_png_files_are_for_pictures(tmp_path, shape, settings, message):
    sampler = constant_sampler(shape)
    with pytest.raises(ValueError, match=message):
        draw(sampler, sampler.request([0]), tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("solver", ["heun", "dopri5"])
def test_trajectories_are_written_beside_the_samples(tmp_path, solver):
    """By the command and by draw: those of fs.trajectory; a run that has none removes those of an earlier one."""
    line = ["sample", "analytic:gaussian", "-n", "5", "--solver", solver, "--device", "cpu", "--network", "own"]
    command, python = tmp_path / "command", tmp_path / "python"
    with pytest.raises(SystemExit) as end:
        main([*line, "--quiet", "--trajectory", "--out", str(command)])
    assert end.value.code == 0
    sampler = Sampler(by_name("gaussian"), schedule=VP(), solver=solver, batch=64)
    traced = Traced(sampler)
    draw(traced, sampler.request(range(5)), python, further=traced.write)
    path = trajectory(sampler, range(5))
    for folder in (command, python):
        with np.load(folder / "trajectory.npz") as file:
            saved = dict(file)
        assert set(saved) == {"times", "states"} | ({"x0"} if path.x0 is not None else set())
        assert np.array_equal(saved["times"], path.times, equal_nan=True)
        assert np.array_equal(saved["states"], path.states, equal_nan=True)
        if path.x0 is not None:
            assert np.array_equal(saved["x0"], path.x0)
    samples = arrays_of(command)["samples"]
    assert np.array_equal(samples, sampler.run(range(5))) and np.array_equal(samples, arrays_of(python)["samples"])
    assert "trajectory.npz" in files(command)
    draw(sampler, sampler.request(range(5)), command, overwrite=True)
    assert "trajectory.npz" not in files(command)


def test_the_last_shard_of_a_run_is_no_batch_that_is_mostly_padding(tmp_path, recwarn):
    """The network pads there, too, but the run has enough samples for its batch; three samples have not."""
    model = load_model("fashion")
    for n, warned in ((9, 0), (3, 1)):
        sampler = Sampler(model, steps=1, batch=8)
        draw(sampler, sampler.request(range(n), labels=0), tmp_path / str(n), shard=8)
        assert sum("lines of padding" in str(w.message) for w in recwarn) == warned
