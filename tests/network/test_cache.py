"""The user's cache: nobody else's code runs, nothing outside is touched, and it stays small."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from pathlib import Path

import pytest
import torch

from fastscore.network import cache, package
from fastscore.network.jit import compiled

OTHER = 12345
LONG_AGO = time.time() - 7 * 24 * 3600


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    return tmp_path / "cache" / "fastscore"


def owned_by_another(monkeypatch, file: Path) -> None:
    """What a file of another user looks like; only root can make one."""
    inode, real = file.lstat().st_ino, _refuse

    def refuse(path, info, shared):
        if info.st_ino == inode:
            info = os.stat_result((*info[:4], OTHER, *info[5:]))
        real(path, info, shared)

    monkeypatch.setattr(cache, "_refuse", refuse)


_refuse = cache._refuse


def plant(home: Path, key: str = "k" * 32, name: str | None = None, where: Path | None = None) -> tuple[Path, Path]:
    """Put native code and its note, right in every digest, where a package would be."""
    networks = cache.private("networks")
    file = (where or networks) / (name or f"{key}-01234567.pt2")
    file.write_bytes(b"code that must not run")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    note = networks / f"{key}.json"
    named = os.path.relpath(file, networks)
    note.write_text(json.dumps({"file": named, "sha256": digest, "checked": {}}))
    for path in (file, note):
        path.chmod(0o600)
    return file, note


@pytest.fixture
def loaded(monkeypatch):
    """Code that was run."""
    ran: list[Path] = []
    monkeypatch.setattr(package, "_runner", lambda file: ran.append(file) or (lambda *inputs: inputs[0]))
    return ran


def load(key: str = "k" * 32) -> tuple[object, list[str]]:
    said: list[str] = []
    return package.load(key, said.append), said


def test_a_package_of_ones_own_is_run(home, loaded):
    file, _ = plant(home)
    found, said = load()
    assert found is not None
    assert loaded == [file]
    assert not said


def test_folders_are_the_users_alone(home):
    old = os.umask(0)
    try:
        folder = cache.private("networks")
        cache.write(folder / "a.json", b"{}")
    finally:
        os.umask(old)
    assert [stat.S_IMODE(p.stat().st_mode) for p in (home, folder, folder / "a.json")] == [0o700, 0o700, 0o600]
    home.chmod(0o755)  # as earlier versions made it
    cache.private("networks")
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


@pytest.mark.parametrize("what", ["cache", "networks", "note", "package", "parent"])
@pytest.mark.parametrize("how", ["group", "world", "owner"])
def test_what_others_can_write_never_runs(home, loaded, monkeypatch, what, how):
    file, note = plant(home)
    path = {"cache": home, "networks": note.parent, "note": note, "package": file, "parent": home.parent}[what]
    if how == "owner":
        owned_by_another(monkeypatch, path)
    else:
        path.chmod(path.stat().st_mode | {"group": 0o020, "world": 0o002}[how])
        monkeypatch.setattr(os, "getegid", lambda: OTHER)
    found, said = load()
    assert found is None
    assert not loaded
    assert len(said) == 1
    assert "ignored: Unsafe" in said[0] and str(path) in said[0]
    assert f"belongs to user {OTHER}" in said[0] if how == "owner" else "can be written by others" in said[0]
    assert "\n" not in said[0]


def test_a_long_path_hides_no_remedy(home, loaded):
    file, _ = plant(home)
    deep = home.joinpath(*["d" * 100] * 4)
    deep.mkdir(parents=True)
    info = os.stat_result([0o100666, *file.stat()[1:]])
    with pytest.raises(cache.Unsafe) as error:
        cache._refuse(deep / file.name, info, shared=False)
    assert "chmod go-w it" in package.one_line(error.value)


@pytest.mark.parametrize("what", ["networks", "note", "package"])
def test_links_are_not_followed(home, loaded, tmp_path, what):
    file, note = plant(home)
    path = {"networks": note.parent, "note": note, "package": file}[what]
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    found, said = load()
    assert found is None
    assert not loaded
    assert len(said) == 1


def test_a_pipe_in_the_place_of_a_note_hangs_nothing(home, loaded):
    _, note = plant(home)
    note.unlink()
    os.mkfifo(note, 0o600)
    found, said = load()
    assert found is None
    assert "no plain file" in said[0]


@pytest.mark.parametrize("name", ["../evil.pt2", "/evil.pt2", "..", ".pt2", "a/b.pt2", "a\x00.pt2", "", 7, None])
def test_a_note_names_files_of_its_own_folder_only(home, loaded, tmp_path, name):
    _, note = plant(home)
    (home / "evil.pt2").write_bytes(b"evil")
    entry = json.loads(note.read_text())
    note.write_text(json.dumps({**entry, "file": name, "sha256": hashlib.sha256(b"evil").hexdigest()}))
    found, said = load()
    assert found is None
    assert not loaded
    assert len(said) == 1
    with pytest.raises(ValueError, match="no file of this cache"):
        cache.checked_name(name)


def test_a_note_is_of_its_own_key_only(home, loaded):
    """A note that is renamed would vouch for another network."""
    _, note = plant(home)
    note.rename(note.with_name("l" * 32 + ".json"))
    found, said = load("l" * 32)
    assert found is None
    assert not loaded
    assert "not of this network" in said[0]


@pytest.mark.parametrize("checked", [None, [], {"a": "0"}, {"a": None}, {"a": True}])
def test_verdicts_are_numbers(home, loaded, checked):
    _, note = plant(home)
    note.write_text(json.dumps({**json.loads(note.read_text()), "checked": checked}))
    found, said = load()
    assert found is None
    assert not loaded
    assert len(said) == 1


def test_where_no_cache_is_safe_a_network_is_compiled_and_not_kept(home, loaded, monkeypatch):
    folder = cache.private("networks")
    folder.chmod(0o777)
    monkeypatch.setattr(torch.export, "export", lambda *args, **options: None)
    monkeypatch.setattr(package, "_compile", lambda program, file: file.write_bytes(b"code"))
    said: list[str] = []
    made = package.build("k" * 32, torch.nn.Linear(2, 2), (torch.zeros(1, 2),), said.append)
    assert made.note is None
    assert not any(folder.iterdir())
    (ran,) = loaded
    assert home not in ran.parents
    assert not ran.parent.exists()  # what was made on the way is gone
    assert "not kept: Unsafe" in said[0]
    assert len(said) == 1


def test_without_a_home_nothing_is_kept(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.raises(FileNotFoundError, match="no cache"):
        cache.private("networks")


# Torch's own cache


def test_the_compilers_cache_lies_below_ours_unless_the_user_chose(home, monkeypatch):
    said: list[str] = []
    cache.inductor(said.append)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(home / "inductor")
    assert stat.S_IMODE((home / "inductor").stat().st_mode) == 0o700
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", default_cache_dir())  # torch did, where anybody may have been first
    cache.inductor(said.append)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(home / "inductor")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/chosen")
    cache.inductor(said.append)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/chosen"
    assert not said


@pytest.mark.parametrize("why", ["space", "others"])
def test_where_ours_is_no_place_for_a_compiler_it_gets_one_of_the_process(home, monkeypatch, tmp_path, why):
    monkeypatch.setattr(cache, "_temporary", lambda: tmp_path / "own")
    if why == "space":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "my cache"))
    else:
        cache.private("inductor").chmod(0o777)
    said: list[str] = []
    cache.inductor(said.append)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "own")
    assert len(said) == 1


def test_torch_compile_has_its_cache_there_too(home, monkeypatch):
    monkeypatch.setattr("fastscore.network.jit.compiler", lambda: "/usr/bin/g++")
    monkeypatch.setattr(torch, "compile", lambda net, **options: net)
    compiled(torch.nn.Identity(), "compile")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(home / "inductor")


def test_a_workspace_has_no_space_in_its_path(monkeypatch, tmp_path):
    (tmp_path / "a b").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "a b"))
    folder = cache.workspace("fastscore-test-")
    assert " " not in str(folder)
    folder.rmdir()
    assert not any((tmp_path / "a b").iterdir())


# What stays


def aged(file: Path, seconds: float, size: int = 10) -> Path:
    file.write_bytes(b"x" * size)
    os.utime(file, (time.time() - seconds,) * 2)
    return file


def test_the_oldest_are_pruned_and_what_is_in_use_stays(tmp_path):
    day = 24 * 3600.0
    old = [aged(tmp_path / f"{k}", day * (k + 1)) for k in range(5)]
    new = [aged(tmp_path / f"new{k}", 60.0 * k, 1000) for k in range(3)]
    assert cache.prune([*old, *new], 5, 10**6) == old[2:]
    assert sorted(tmp_path.iterdir()) == sorted([*old[:2], *new])
    assert cache.prune([*old, *new], 99, 2000) == old[:2]  # bytes
    assert cache.prune(new, 0, 0) == []  # used within the hour
    cache.used(aged(old[0], day))
    assert cache.prune(old, 0, 0) == []


def test_a_cache_stays_bounded_and_loses_nothing_that_is_not_its_own(home, monkeypatch):
    monkeypatch.setattr(package, "KEPT", 3)
    networks, keys = cache.private("networks"), [c * 32 for c in "abcdef"]
    for age, key in enumerate(keys):
        for file in plant(home, key):
            os.utime(file, (LONG_AGO - age,) * 2)
    orphan = aged(networks / ("z" * 32 + "-00000000.pt2"), 8 * 24 * 3600.0)
    half = networks / ".build-x"
    half.mkdir()
    os.utime(half, (LONG_AGO,) * 2)
    partial = aged(networks / ".a.json.77.tmp", 8 * 24 * 3600.0)
    mine = aged(networks / "notes of mine.txt", 8 * 24 * 3600.0)
    scratch = cache.private("inductor")
    header, big = aged(scratch / "cpp_prefix.h", 8 * 24 * 3600.0), aged(scratch / "big.so", 8 * 24 * 3600.0, 4096)
    monkeypatch.setattr(package, "SCRATCH_BYTES", 1000)
    package.tidy(networks)
    assert not any(p.exists() for p in (orphan, half, partial, big))
    assert mine.exists() and header.exists()
    assert sorted(p.name[:1] for p in networks.glob("*.pt2")) == ["a", "b", "c"]
    assert {p.name[:1] for p in networks.glob("*.json")} >= {"a", "b", "c"}
    assert not (networks / ("f" * 32 + ".json")).exists()


def test_loading_counts_as_use(home, loaded):
    file, note = plant(home)
    for path in (file, note):
        os.utime(path, (LONG_AGO,) * 2)
    load()
    assert all(path.stat().st_mtime > time.time() - 60 for path in (file, note))
