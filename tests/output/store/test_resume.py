"""A run that ended early goes on by the same call, to the same bytes; another run is refused, by what differs."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from contextlib import contextmanager, suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from drawn import FAULTS, by_id, image, request, sampler, shards_below

from fastscore.cli import _verdict
from fastscore.engine.trajectory import Traced
from fastscore.files import here
from fastscore.model.conditions import Known
from fastscore.output.run import draw
from fastscore.output.store import folder as folder_module
from fastscore.output.store import job as job_module
from fastscore.output.store import resume
from fastscore.output.store.gather import recorded, scatter
from fastscore.output.store.manifest import Manifest
from fastscore.output.store.resume import AnotherRunError
from fastscore.output.store.work import Stopped
from fastscore.solvers import Dopri5


def some(cases, *quick):
    """Return the names of cases as parameters, those that are not quick enough for every day marked as slow."""
    return [pytest.param(case, marks=() if case in quick else pytest.mark.slow) for case in cases]


pytestmark = pytest.mark.usefixtures("no_faults")


@contextmanager
def after(calls, error=KeyboardInterrupt):
    """Let the network raise once it was called so often."""
    count = 0

    def fault(x0, c_noise, cond):
        nonlocal count
        count += 1
        if count > calls:
            raise error
        return x0

    FAULTS.append(fault)
    try:
        yield
    finally:
        FAULTS.remove(fault)


def told(source, n=24):
    return request(source, range(n))


def go(out, source=None, n=24, **settings):
    """Draw a run of shards of 8 samples: 2 micro-batches of 7 evaluations each."""
    source = source or sampler(batch=4)
    settings = {"shard": 8} | settings
    return draw(source, settings.pop("asked", None) or told(source, n), out, **settings)


def samples(out):
    with np.load(out / "samples.npz") as saved:
        return by_id(dict(saved))


def stopped(out, source=None, calls=20, **settings):
    """End a run in its second shard; return the bytes of the first."""
    with after(calls), pytest.raises(Stopped) as error:
        go(out, source, **settings)
    assert _verdict(error.value)[0] == 75
    return shards_below(out)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    go(out)
    return samples(out)


def clean(out):
    return sorted(path.name for path in out.iterdir()) == ["grid.png", "run.json", "samples.npz"]


def test_the_same_call_goes_on(tmp_path, whole):
    out, drawn = tmp_path / "out", []
    assert list(stopped(out)) == [0]
    FAULTS.append(lambda x0, c_noise, cond: drawn.extend(cond[:, 0].tolist()) or x0)
    run = go(out)
    assert set(drawn) == set(map(float, range(8, 24)))
    assert samples(out) == whole and clean(out)
    assert run["timings"]["shards_found"] == 1 and len(run["shards"]) == 3
    drawn.clear()
    again = go(out)
    assert again.pop("already_complete") and not drawn
    assert again == run == json.loads((out / "run.json").read_text())


def test_the_message_says_what_is_kept(tmp_path):
    out = tmp_path / "out"
    with after(3), pytest.raises(Stopped, match="interrupted: no shard was complete yet"):
        go(out)
    assert not out.exists()
    with after(20), pytest.raises(Stopped, match=f"interrupted: 1 of 3 shards are kept in {out}, and the same command"):
        go(out)


def test_named_conditions_go_on_and_are_part_of_the_run(tmp_path):
    out, source = tmp_path / "out", sampler(batch=4, classes=3, cond_shape={"tokens": (None,), "mask": (None,)})
    told = {"tokens": torch.arange(72).view(24, 3), "mask": torch.arange(72).view(24, 3) % 5 > 0}

    def shifted(x0, c_noise, cond):
        return x0 + 0.01 * (cond["tokens"] * cond["mask"]).sum(1, keepdim=True) - cond["labels"][:, None]

    def asked(group=4, **changed):
        cond, prior = {**told, **changed}, [k // group for k in range(24)]
        return source.request(range(24), 0, labels=torch.arange(24) % 3, cond=cond, prior_ids=prior)

    FAULTS.append(shifted)
    assert list(stopped(out, source, asked=asked())) == [0]
    for other in (
        {"tokens": told["tokens"][:, :2]},
        {"mask": ~told["mask"]},
        {"tokens": told["tokens"].int()},
        {"group": 3},
    ):
        with pytest.raises(AnotherRunError, match=r"\btold: .* there, .* here"):
            go(out, source, asked=asked(**other))
    assert go(out, source, asked=asked())["timings"]["shards_found"] == 1
    with np.load(out / "samples.npz") as saved:
        arrays = dict(saved)
    assert np.array_equal(arrays["samples"], source.run(asked()).numpy())
    assert all(np.array_equal(arrays[f"cond.{name}"], v.numpy()) for name, v in told.items())
    assert arrays["prior_ids"].tolist() == [k // 4 for k in range(24)]
    manifest = recorded(out)[0]
    parts = [shard.arrays for shard in scatter(out, manifest)]  # as `export` and `verify` read a run
    assert all(np.array_equal(np.concatenate([part[name] for part in parts]), x) for name, x in arrays.items())


OTHERS = {
    "seed": {"asked": lambda source: request(source, range(24), 1)},
    "ids": {"asked": lambda source: request(source, range(1, 25))},
    "n": {"n": 25},
    "told": {"asked": lambda source: source.request(range(24), cond=torch.zeros(24, 1))},
    "plan": {"source": lambda: sampler(batch=4, steps=5)},
    "solver": {"source": lambda: sampler(batch=4, solver="euler")},
    "model": {"source": lambda: sampler(lambda u, c_noise, cond: 0.5 * u, batch=4)},
    "format": {"format": "npy"},
    "shard": {"shard": 4},
    "gathered": {"gathered": False},
    "numerics.batch": {"source": lambda: sampler(batch=8)},
}


@pytest.mark.parametrize("key", some(OTHERS, "seed", "plan", "shard", "numerics.batch"))
def test_another_run_is_refused_by_name_and_costs_nothing(tmp_path, whole, key):
    settings, out = dict(OTHERS[key]), tmp_path / "out"
    kept = stopped(out)
    source = settings.pop("source", lambda: sampler(batch=4))()
    if "asked" in settings:
        settings["asked"] = settings["asked"](source)
    for _ in range(2):
        with pytest.raises(AnotherRunError, match=rf"1 of 3 shards of an unfinished run.*\b{key}: .* there, .* here"):
            go(out, source, **settings)
        assert shards_below(out) == kept
    go(out)
    assert samples(out) == whole
    with pytest.raises(AnotherRunError, match=rf"already holds a run with other settings.*\b{key}: "):
        go(out, source, **settings)
    assert samples(out) == whole


def test_of_a_run_without_shards_nothing_is_in_the_way(tmp_path, whole):
    out = tmp_path / "out"
    (out / ".run/new").mkdir(parents=True)
    Manifest(7, "0-6", 3, gathered=True).write(resume.Folder(out / ".run"))
    go(out)
    assert samples(out) == whole and clean(out)
    found, other = recorded(out), tmp_path / "other"
    assert found is not None
    (other / ".run/new").mkdir(parents=True)
    replace(found[0], numerics={"torch": "1.0"}).write(resume.Folder(other / ".run"))
    assert go(other)["manifest"] == found[0].to_dict()


def test_what_a_killed_writer_left_goes(tmp_path):
    out = tmp_path / "out"
    stopped(out)
    left = out / ".run/shards/0000" / f".0000001.npz.0123abcd-1.{1 << 29}@{here()}.tmp"
    left.write_bytes(bytes(100))
    stopped(out, calls=2)
    assert shards_below(out) and not left.exists()


def test_fresh_drops_another_run_and_goes_on_with_its_own(tmp_path, whole):
    out = tmp_path / "out"
    stopped(out, sampler(batch=4, steps=5), calls=24)
    kept = stopped(out, overwrite=True)
    assert list(kept) == [0]
    assert go(out, overwrite=True)["timings"]["shards_found"] == 1
    assert samples(out) == whole and clean(out)


def test_a_folder_with_a_run_and_an_unfinished_one(tmp_path, whole):
    """The complete one stays until the other is complete; what belongs to neither is refused."""
    out, other = tmp_path / "out", sampler(batch=4, steps=5)
    go(out)
    stopped(out, other, calls=24, overwrite=True)
    assert samples(out) == whole
    assert go(out)["already_complete"]
    with pytest.raises(AnotherRunError, match="already holds a run with other settings"):
        go(out, other)
    assert go(out, other, overwrite=True)["timings"]["shards_found"] == 1
    assert samples(out) != whole and clean(out)


def test_the_size_of_shards_is_that_of_the_begun_run_unless_asked_for(tmp_path, whole):
    out = tmp_path / "out"
    stopped(out)
    assert len(go(out, shard=None)["shards"]) == 3
    assert samples(out) == whole
    assert go(out, shard=None)["already_complete"]
    with pytest.raises(AnotherRunError, match="shard: 8 there, 4 here"):
        go(out, shard=4)


def test_another_machine_goes_on_only_if_that_is_asked_for(tmp_path, whole, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        known = job_module.machine
        patched.setattr(job_module, "machine", lambda device: known(device) | {"torch": "1.0"})
        kept = stopped(out)
    with pytest.raises(AnotherRunError, match=r"numerics\.torch: '1\.0' there"):
        go(out)
    assert shards_below(out) == kept  # which a run of another machine needs
    go(out, mixed=True)
    assert samples(out) == whole
    found = recorded(out)
    assert found is not None and found[0].numerics["torch"] == "1.0"


@pytest.mark.parametrize("data", [b"", b"{", b"[]"])
def test_a_manifest_that_cannot_be_read_is_dropped_by_fresh_alone(tmp_path, whole, data):
    out = tmp_path / "out"
    stopped(out)
    (out / ".run/manifest.json").write_bytes(data)
    with pytest.raises(AnotherRunError, match=r"manifest\.json .*or start over, --fresh"):
        go(out)
    assert shards_below(out)
    go(out, overwrite=True)
    assert samples(out) == whole and clean(out)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-5], lambda data: data[:200] + b"??" + data[202:], lambda data: b""]
)
def test_what_was_damaged_meanwhile_is_drawn_again(tmp_path, whole, damage):
    out = tmp_path / "out"
    stopped(out)
    file = next(out.rglob("shards/*/*.npz"))
    file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(UserWarning, match="shard 0 was damaged; it is drawn again"):
        go(out)
    assert samples(out) == whole and clean(out)


def interrupt(*_):
    raise KeyboardInterrupt


def test_a_second_interrupt_costs_nothing(tmp_path, whole, monkeypatch):
    """As of one who presses Ctrl-C again while the first is being told."""
    out = tmp_path / "out"
    from fastscore.output import run

    looked = iter((run.present,))  # where the work begins; and then where the first interrupt is told
    with monkeypatch.context() as patched, after(20), pytest.raises(KeyboardInterrupt):
        patched.setattr(run, "present", lambda *about: next(looked, interrupt)(*about))
        go(out)
    assert list(shards_below(out)) == [0]
    go(out)
    assert samples(out) == whole


@pytest.mark.parametrize("where", ["reserve", "continued", "catch_up", "ready"])
def test_what_fails_before_the_work_begins_costs_nothing(tmp_path, whole, monkeypatch, where):
    from fastscore.output import run

    out = tmp_path / "out"
    kept = stopped(out)

    def fails(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        if where == "reserve":
            patched.setattr(run.Stage, "reserve", fails)
        elif where == "ready":
            patched.setattr(run.Job, "ready", fails)
        else:
            patched.setattr(run, where, fails)
        with pytest.raises(OSError) as error:
            go(out)
    assert _verdict(error.value)[0] == 5
    assert shards_below(out) == kept
    go(out)
    assert samples(out) == whole


def test_runs_of_no_samples(tmp_path):
    for settings in ({}, {"gathered": False}, {"format": "npy"}):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        for _ in range(2):
            run = go(out, n=0, **settings)
        assert run["manifest"]["n"] == 0 and run["settings"]["num"] == 0
        assert go(out, n=0, **settings)["already_complete"]
    with np.load(tmp_path / "0/samples.npz") as saved:
        assert (saved["samples"].shape, saved["ids"].shape) == ((0, 3), (0,))


# What lies beside the samples.


def images(out):
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("png/**/*.png")}


@pytest.mark.thirds
@pytest.mark.parametrize("gathered", some((None, False), None))
@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"png": True}, {"png": True}), ({}, {"png": True}), ({"png": True}, {}),
        ({"png": True}, {"png": True, "subdirs": True}),
    ],
    ids=["same", "more", "less", "elsewhere"],
)  # fmt: skip
def test_images_are_those_of_the_last_call(tmp_path, first, then, gathered):
    out, source = tmp_path / "out", sampler(image, batch=4)
    go(tmp_path / "whole", source, gathered=gathered, **then)
    stopped(out, source, gathered=gathered, **first)
    go(out, source, gathered=gathered, **then)
    assert images(out) == images(tmp_path / "whole")
    assert len(images(out)) == 24 * ("png" in then)
    names = {path.relative_to(out) for path in out.rglob("*") if path.is_file()}
    assert names == {path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*") if path.is_file()}
    go(out, source, gathered=gathered, overwrite=True)  # all of it is known to be the run's
    assert not images(out)


def test_an_image_that_was_half_written_is_written_again(tmp_path):
    """Since an image has its name only when it is whole; what a kill leaves has another."""
    out, source = tmp_path / "out", sampler(image, batch=4)
    stopped(out, source, png=True)
    file = out / ".run/new/png/000003.png"
    file.rename(file.with_name(".000003.png.0123abcd-1.1.tmp"))
    go(out, source, png=True)
    assert len(images(out)) == 24


@pytest.mark.parametrize("solver", some(("heun", Dopri5(rtol=0.1, atol=0.1)), "heun"), ids=["plan", "adaptive"])
def test_a_trajectory_is_of_all_samples_or_asked_for_again(tmp_path, solver):
    source, out = sampler(batch=4, solver=solver), tmp_path / "out"

    def traced(where, **settings):
        trace = Traced(source)
        return go(where, trace, asked=told(source), further=trace.write, shard=None, **settings)

    traced(tmp_path / "whole")
    with np.load(tmp_path / "whole/trajectory.npz") as saved:
        expected = dict(saved)
    with after(3), pytest.raises(Stopped):
        traced(out)
    assert not out.exists()
    assert stopped(out, source, 20 if solver == "heun" else 150)
    with pytest.raises(AnotherRunError, match="shard: 8 there, 24 here"):
        traced(out)
    traced(out, overwrite=True)
    other = tmp_path / "other"  # all shards of it are there, and no trajectory
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("fastscore.output.run.gather", interrupt)
        with pytest.raises(Stopped):
            go(other, source, shard=24)
        assert list(shards_below(other)) == [0]
    traced(other)
    for where in (out, other):
        with np.load(where / "trajectory.npz") as saved:
            assert all(np.array_equal(saved[name], x, equal_nan=True) for name, x in expected.items())
        assert samples(where) == samples(tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("fastscore.output.run.gather", interrupt)
        with pytest.raises(Stopped):
            traced(tmp_path / "last")
    go(tmp_path / "last", source, shard=None)
    assert clean(tmp_path / "last")


def masked(source):
    pixels, where = torch.linspace(-1, 1, 24 * 64).view(24, 1, 8, 8), torch.arange(64).view(1, 8, 8) % 3 == 0
    return source.request(range(24), cond=torch.arange(24.0)[:, None], known=Known(pixels, where))


KINDS = {
    "adaptive": lambda: (sampler(batch=4, solver=Dopri5(rtol=0.1, atol=0.1)), told),
    "classes": lambda: (sampler(batch=4, classes=3, null=3), lambda s: s.request(range(24), 7, labels="random")),
    "seeds": lambda: (sampler(batch=4), lambda s: request(s, [k // 2 for k in range(24)], list(range(24)))),
    "inpaint": lambda: (sampler(image, batch=4), masked),
}  # fmt: skip


@pytest.mark.parametrize("kind", some(KINDS, "classes", "inpaint"))
def test_every_kind_of_run_goes_on(tmp_path, kind):
    source, asked = KINDS[kind]()
    FAULTS.append(lambda x0, c_noise, cond: x0)
    counted = []
    FAULTS.append(lambda x0, c_noise, cond: counted.append(1) or x0)
    go(tmp_path / "whole", source, asked=asked(source))
    calls = len(counted)
    found = set()
    for share in (0.4, 0.6, 0.9):
        kept = stopped(tmp_path / "out", source, int(share * calls / (2 if found else 1)), asked=asked(source))
        found |= kept.keys()
    assert found
    source.release()
    run = go(tmp_path / "out", source, asked=asked(source))
    with np.load(tmp_path / "out/samples.npz") as one, np.load(tmp_path / "whole/samples.npz") as other:
        assert list(one) == list(other)
        assert all(one[name].tobytes() == other[name].tobytes() for name in one)
        if kind == "adaptive":
            assert run["adaptive"]["samples"] == 8
        if kind == "seeds":
            assert len(np.unique(one["samples"], axis=0)) == 24


# Storage that fails.


def mounted(disk, options):
    """Mount a disk in memory; return whether that can be done here."""
    command = [shutil.which("mount"), "-t", "tmpfs", "-o", options, "tmpfs", disk]
    return command[0] is not None and not subprocess.run(command, capture_output=True).returncode


@pytest.fixture
def megabyte(tmp_path):
    """A disk of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if not mounted(disk, "size=1m"):
        pytest.skip("this user cannot mount a tmpfs, which is the disk to be filled")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_costs_nothing(tmp_path, megabyte, monkeypatch):
    """Too small from the start; and filled by others while shards are written, or while they become one file."""
    source, room = sampler(image, batch=64, steps=1), "fastscore.output.room.SPARE"
    monkeypatch.setattr(room, 1 << 12)
    whole, out = tmp_path / "whole", megabyte / "out"
    big = {"source": source, "n": 3000, "shard": 500, "gathered": False}
    go(whole, source, n=3000, shard=500)
    with pytest.raises(OSError, match=r"needs .* of disk .*has .* free") as error:
        go(out, source, n=30_000)
    assert _verdict(error.value)[0] == 5
    assert not out.exists()
    filler, count = megabyte / "other", 0

    def fill(x0, c_noise, cond):
        nonlocal count
        count += 1
        if count == 20:  # the room is taken, so only what was not reckoned with can be lacking
            monkeypatch.setattr(
                "fastscore.output.run.Stage.spend", lambda self, left: os.truncate(self.work / "reserve", 0)
            )
        if count == 30:
            with suppress(OSError), filler.open("wb") as file:
                while True:
                    file.write(bytes(1 << 12))
        return x0

    FAULTS.append(fill)
    with pytest.raises(OSError, match=r"needs .* of disk .* free.*; \d of 6 shards are kept") as error:
        go(out, **big)
    assert _verdict(error.value)[0] == 5
    FAULTS.clear()
    kept = shards_below(out)
    assert kept
    with pytest.raises(OSError, match=r"needs .* of disk") as error:
        go(out, **big)
    assert _verdict(error.value)[0] == 5 and shards_below(out) == kept
    filler.unlink()
    go(out, **big)
    with np.load(whole / "samples.npz") as saved:
        expected = by_id(dict(saved))
    from fastscore.output.store.runs import shards_of

    assert {k: v for shard in shards_of(out)[1] for k, v in by_id(shard.arrays).items()} == expected


@pytest.mark.parametrize("code", some((errno.EIO, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.ESTALE), errno.EIO))
@pytest.mark.parametrize("point_", ["written", "synced", "linked"])
def test_storage_that_fails_costs_nothing(tmp_path, whole, monkeypatch, code, point_):
    out, count = tmp_path / "out", 0

    def fails(reached):
        nonlocal count
        count += reached == point_
        if reached == point_ and count == 3:  # the manifest, a shard, a shard
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(folder_module, "_at", fails)
    with pytest.raises(OSError, match=r"[12] of 3 shards are kept in .*, and the same command goes on") as error:
        go(out)
    assert _verdict(error.value)[0] == 5
    assert 0 in shards_below(out)
    go(out)
    assert samples(out) == whole and clean(out)


def test_a_folder_that_cannot_be_written(tmp_path):
    if os.geteuid() == 0:  # whom no mode stops
        disk = tmp_path / "disk"
        disk.mkdir()
        if not mounted(disk, "ro,size=1m"):
            pytest.skip("root can write any folder here, and cannot mount one that is read-only")
    else:
        disk = tmp_path / "disk"
        disk.mkdir(mode=0o500)
    try:
        with pytest.raises(OSError) as error:
            go(disk / "out")
        code, said = _verdict(error.value)
        assert code == 5 and str(disk) in said
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", "-l", disk], check=True)
