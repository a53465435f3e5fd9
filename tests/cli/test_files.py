"""Where commands write, and what they leave alone: everything that can be seen in one process."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fastscore.model.folder import BUNDLED, load_model
from fastscore.output import disk
from fastscore.output.lock import locked

POINTS = ("sample", "analytic:gaussian", "-n", "40", "--steps", "4", "--quiet", "--device", "cpu")
IMAGES = ("sample", "fashion", "-n", "2", "--batch", "2", "--steps", "1", "--network", "own", "--quiet", "--png")
CHAINS = ("langevin", "analytic:gaussian", "-n", "8", "--steps", "20", "--quiet")
TRAIN = ("train", "moons", "--images", "256", "--no-compile", "--quiet", "--width", "8")


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def likelihood(tmp_path):
    np.save(tmp_path / "points.npy", np.zeros((3, 2), np.float32))
    return ("likelihood", "analytic:gaussian", tmp_path / "points.npy", "--quiet", "--schedule", "ve")


@pytest.fixture
def infinite(tmp_path):
    """A model folder whose weights are finite and whose outputs are not."""
    folder = tmp_path / "infinite"
    shutil.copytree(BUNDLED / "fashion", folder)
    state = load_model("fashion").net.state_dict()
    save_file({k: torch.full_like(v, 3e38) for k, v in state.items()}, folder / "model.safetensors")
    return folder


def test_a_run_that_becomes_nan_leaves_the_earlier_one(run, tmp_path, infinite):
    out = tmp_path / "out"
    assert run(*IMAGES, "--out", out)[0] == 0
    before = contents(out)
    assert len(before) == 5
    code, _, error = run(*IMAGES[:1], infinite, *IMAGES[2:], "--out", out, "--overwrite")
    assert (code, len(error.strip().splitlines())) == (4, 1)
    assert contents(out) == before
    code, _, error = run(*IMAGES[:1], infinite, *IMAGES[2:], "--out", tmp_path / "new")
    assert code == 4 and not (tmp_path / "new").exists()


@pytest.mark.parametrize("command", ["sample", "langevin", "inpaint", "train", "train-classifier", "likelihood"])
def test_an_empty_path_is_no_path(run, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    argv = {"sample": ("fashion",), "langevin": ("analytic:gaussian",), "inpaint": ("fashion", "x", "--box", "1,1,2,2")}
    for empty in ("", " "):
        code, _, error = run(
            command, *argv.get(command, ("moons",)), *("moons",) * (command == "likelihood"), "--out", empty
        )
        assert code == 2 and "empty" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "argv", [POINTS, CHAINS, pytest.param(TRAIN, marks=pytest.mark.slow)], ids=lambda argv: argv[0]
)
def test_folders_are_held_and_never_reached_through_links(run, tmp_path, argv):
    out = tmp_path / "out"
    assert run(*argv, "--out", out)[0] == 0
    before = contents(out)
    (tmp_path / "link").symlink_to(out)
    code, _, error = run(*argv, "--out", tmp_path / "link", *(("--overwrite",) if argv is not TRAIN else ()))
    assert code == 2 and f"link is a symbolic link; write to the folder itself: {out}" in error
    with locked(out / ".run-lock", out):
        code, _, error = run(*argv, "--out", out, *(("--overwrite",) if argv is not TRAIN else ()))
    assert code == 2 and f"another process (process {os.getpid()} on" in error and len(error.strip().splitlines()) == 1
    (tmp_path / "file").touch()
    code, _, error = run(*argv, "--out", tmp_path / "file")
    assert code == 2 and "file is a file and no folder" in error
    assert contents(out) == before


def test_chains_are_replaced_only_when_asked(run, tmp_path):
    assert run(*CHAINS, "--out", tmp_path)[0] == 0
    before = contents(tmp_path)
    assert sorted(before) == ["grid.png", "run.json", "samples.npz"]
    code, _, error = run(*CHAINS, "--out", tmp_path)
    assert code == 2 and "already holds samples.npz; choose another folder, or overwrite" in error
    assert run(*CHAINS, "--seed", "1", "--out", tmp_path, "--overwrite")[0] == 0
    assert sorted(contents(tmp_path)) == sorted(before) and contents(tmp_path) != before
    code, _, error = run(
        "langevin", "analytic:gaussian", "-n", "1e6", "--steps", "8e6", "--thin", "1", "--out", tmp_path / "b"
    )
    assert code == 2 and "of memory and" in error and "--thin" in error
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_files_of_no_run_are_not_trained_over(run, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(BUNDLED / "fashion", model)
    before = contents(model)
    code, _, error = run(*TRAIN, "--out", model)
    assert code == 2 and "holds model.safetensors and no checkpoint.safetensors of a run to go on with" in error
    assert contents(model) == before
    (tmp_path / "losses").mkdir()
    (tmp_path / "losses/loss.csv").write_text("mine")
    assert run(*TRAIN, "--out", tmp_path / "losses")[0] == 2
    assert contents(tmp_path / "losses") == {"loss.csv": b"mine"}


def test_a_checkpoint_that_does_not_fit_is_named(run, tmp_path):
    from safetensors import safe_open

    assert run(*TRAIN, "--out", tmp_path)[0] == 0
    file = tmp_path / "checkpoint.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file({"steps": torch.tensor(1)}, file, metadata)
    code, _, error = run(*TRAIN, "--out", tmp_path)
    assert code == 2 and "checkpoint.safetensors does not hold the state of this run" in error
    file.unlink()
    os.mkfifo(file)
    code, _, error = run(*TRAIN, "--out", tmp_path)
    assert code == 2 and "checkpoint.safetensors is a named pipe and no file" in error


def test_a_file_of_likelihoods_is_replaced_only_when_asked(run, tmp_path, likelihood):
    file = tmp_path / "nats.npz"
    file.write_text("mine")
    code, _, error = run(*likelihood, "--out", file)
    assert code == 2 and "nats.npz is already there; choose another name, or overwrite to replace it" in error
    assert file.read_text() == "mine"
    assert run(*likelihood, "--out", file, "--overwrite")[0] == 0
    with np.load(file) as saved:
        assert sorted(saved) == ["bits_per_dim", "nats", "stderr"]
    for odd, message in (
        ("/dev/null", "no regular file"),
        (tmp_path, "no regular file"),
        (tmp_path / "no/x", "no folder"),
    ):
        code, _, error = run(*likelihood, "--out", odd, "--overwrite")
        assert code == 2 and message in error
    assert sorted(os.listdir(tmp_path)) == ["nats.npz", "points.npy"]


@pytest.mark.parametrize(
    "argv",
    [(*POINTS[:2], "-n", "1M"), ("sample", "fashion", "-n", "100k", "--png"), (*CHAINS, "-n", "1M", "--steps", "200")],
    ids=["points", "images", "chains"],
)
def test_a_disk_without_room_is_said_before_the_network_runs(run, tmp_path, monkeypatch, argv):
    monkeypatch.setattr(disk, "free_bytes", lambda _: 10_000_000)
    for name in ("fastscore.sampler.Sampler.stream", "fastscore.chains.run"):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("ran"))
    monkeypatch.setattr("fastscore.sampler.Sampler.prepared", None)
    code, _, error = run(*argv, "--device", "cpu", "--out", tmp_path / "out")
    assert code == 5 and len(error.strip().splitlines()) == 1
    assert re.search(r"out needs [\d.]+ [MG]B of disk \(.*\) and has 10.0 MB free; draw fewer samples at a time", error)
    assert not (tmp_path / "out").exists()


def test_the_room_that_a_run_says_it_needs_is_enough(run, tmp_path, monkeypatch):
    """Of noise, which no PNG makes smaller, with a trajectory: what is on the disk at the end is within it."""
    said = []
    whole = disk.Reserve.__init__
    monkeypatch.setattr(
        disk.Reserve, "__init__", lambda self, file, parts: said.append(dict(parts)) or whole(self, file, parts)
    )
    argv = (
        "sample",
        "fashion",
        "-n",
        "8",
        "--batch",
        "8",
        "--solver",
        "ddim",
        "--steps",
        "1",
        "--network",
        "own",
        "--quiet",
    )
    assert run(*argv, "--no-clean", "--png", "--trajectory", "--out", tmp_path / "out")[0] == 0
    (parts,) = said
    blocks = {p.name: p.stat().st_blocks * 512 for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert sum(v for k, v in blocks.items() if k[0] == "0") <= parts["images"] == 8 * 4096
    assert blocks["trajectory.npz"] <= parts["trajectory"]
    assert blocks["samples.npz"] <= parts["samples"] + 4096
    assert blocks["grid.png"] + blocks["run.json"] <= parts["rest"]


@pytest.mark.parametrize("where", ["images", "samples"])
def test_what_was_sampled_to_the_end_is_not_lost_for_lack_of_disk(run, tmp_path, monkeypatch, where):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "out"
    assert run(*IMAGES, "--out", out)[0] == 0
    before = contents(out)
    with monkeypatch.context() as broken:
        broken.setattr(
            f"fastscore.output.{'pictures.small_pngs' if where == 'images' else 'store.gather.write_joined'}", full
        )
        code, _, error = run(*IMAGES, "--seed", "1", "--out", out, "--overwrite")
    assert code == 5 and len(error.strip().splitlines()) == 1
    assert "No space left on device" in error
    assert {k: v for k, v in contents(out).items() if not k.startswith(".run/")} == before
    if where == "samples":
        assert f"1 of 1 shards are kept in {out}, and the same command goes on there" in error
        monkeypatch.setattr("fastscore.sampler.Sampler.stream", lambda *_, **__: pytest.fail("drawn again"))
    assert run(*IMAGES, "--seed", "1", "--out", out, "--overwrite")[0] == 0
    assert sorted(p.name for p in out.iterdir()) == sorted({name.split("/")[0] for name in before})


def test_a_classifier_takes_the_place_of_a_classifier_only(run, tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (140, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(140) % 2)
    argv = ("train-classifier", tmp_path / "x.npz", "--epochs", "1", "--width", "8", "--quiet", "--out")
    model = tmp_path / "model"
    shutil.copytree(BUNDLED / "fashion", model)
    before = contents(model)
    assert run(*argv, model)[0] == 2
    code, _, error = run(*argv, model, "--overwrite")
    assert code == 2 and "already holds model.safetensors, which no run here is known to have written" in error
    assert contents(model) == before
    out = tmp_path / "out"
    assert run(*argv, out)[0] == 0
    assert sorted(contents(out)) == ["config.json", "model.safetensors"]
    before = contents(out)
    code, _, error = run(*argv, out)
    assert code == 2 and "already holds model.safetensors; choose another folder, or overwrite" in error
    with monkeypatch.context() as broken:
        broken.setattr("fastscore.training.classifier.write_text", lambda *_: (_ for _ in ()).throw(OSError("full")))
        assert run(*argv, out, "--overwrite", "--seed", "1")[0] == 5
    assert contents(out) == before
    assert run(*argv, out, "--overwrite", "--seed", "1")[0] == 0
    assert sorted(contents(out)) == sorted(before) and contents(out) != before


def test_sizes_on_the_command_line_are_bounded(run, tmp_path, monkeypatch):
    monkeypatch.setattr("fastscore.data.limits.available_memory", lambda: 20_000_000_000)
    image = tmp_path / "x.npy"
    np.save(image, np.zeros((1000, 28, 28), np.uint8))
    code, _, error = run("inpaint", "fashion", image, "--box", "1,1,2,2", "-n", "10k", "--out", tmp_path / "out")
    assert code == 2 and "10,000,000 results takes 62.7 GB of memory" in error and "--limit" in error
    argv = ("langevin", "analytic:gaussian", "--method", "annealed", "--levels", "10k", "--steps", "8M")
    code, _, error = run(*argv, "--out", tmp_path / "out")
    assert code == 2 and "--levels times --steps is 80,000,000,000; at most 8,388,608 are taken" in error
    assert not (tmp_path / "out").exists()


def test_a_run_that_is_evaluated_is_first_put_in_place(run, tmp_path):
    """What a kill between commit and the last rename leaves is the new run for whoever reads it."""
    from fastscore.output.commit import COMMITTED

    out, other = tmp_path / "out", tmp_path / "other"
    assert run(*IMAGES, "--out", out)[0] == run(*IMAGES, "--seed", "1", "--out", other)[0] == 0
    (out / "run.json").unlink()
    new = out / COMMITTED / "new"
    shutil.copytree(other, new)
    (out / COMMITTED / "order.json").write_text(json.dumps({"record": "run.json", "remove": ["trajectory.npz"]}))
    code, _, error = run("evaluate", out, "--data", tmp_path / "none")
    assert code == 2 and "neither a known set" in error
    assert contents(out) == contents(other)
