"""What torch.compile makes, kept: read whole or not at all, written once, and nobody else's."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from fastscore.network import artefacts, package
from fastscore.network.artefacts import kept

KEY = "k" * 32


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    return package.folder()


@pytest.fixture
def torch_compiles(monkeypatch):
    """Stand in for torch: parts compiled so far, and what was handed back."""
    state = SimpleNamespace(parts=[], handed=[], seen=0)

    def info(parts):
        return SimpleNamespace(artifacts={"inductor": list(parts)})

    def save():
        return (",".join(state.parts).encode(), info(state.parts)) if state.parts else None

    def load(data):
        state.handed.append(data)
        return info(data.decode().split(",")) if data[:1] != b"!" else None

    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", save)
    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", load)
    monkeypatch.setattr(artefacts, "_alone", nullcontext)
    return state


def compile_(state, *parts, key=KEY, say=pytest.fail):
    with kept(key, say) as found:
        assert found == any(data[:1] != b"!" for data in state.handed[state.seen :])
        state.seen, state.parts[:] = len(state.handed), parts


def files(home):
    return sorted(file.name for file in home.iterdir())


def test_what_was_compiled_is_kept_and_handed_to_the_next_process(home, torch_compiles):
    compile_(torch_compiles, "a", "b")
    name, note = files(home)
    assert (name[:33], name[-9:], note) == (f"{KEY}-", ".compiled", f"{KEY}.json")
    assert all((home / file).stat().st_mode & 0o777 == 0o600 for file in files(home))
    assert not torch_compiles.handed
    os.utime(home / name, (1, 1))
    number = (home / name).stat().st_ino
    compile_(torch_compiles, "a", "b")  # torch lists what it has found, too
    assert (home / name).stat().st_ino == number  # and that is not written again
    assert torch_compiles.handed == [b"a,b"]
    assert files(home) == [name, note]
    assert (home / name).stat().st_mtime > 1e9  # used now
    compile_(torch_compiles, "a", "c")  # something else: another version of torch's own
    assert json.loads((home / note).read_text())["file"] != name
    compile_(torch_compiles, "a", "c")
    assert torch_compiles.handed == [b"a,b", b"a,b", b"a,c"]
    compile_(torch_compiles, key="e" * 32)
    assert f"{'e' * 32}.json" not in files(home)  # nothing was compiled


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda file, note: file.write_bytes(b"a,x"), "not those that were written"),
        (lambda file, note: file.chmod(0o666), "can be written by others"),
        (lambda file, note: (file.unlink(), file.symlink_to("/etc/hostname")), "OSError"),
        (lambda file, note: note.write_text("{"), "JSON"),
        (lambda file, note: note.write_text("[]"), "TypeError"),
        (lambda file, note: note.write_text(json.dumps({"file": "o.compiled", "sha256": ""})), "not of this network"),
        (lambda file, note: note.write_text(json.dumps({"file": "../x", "sha256": ""})), "no file of this cache"),
    ],
)  # fmt: skip
def test_what_is_not_whole_or_not_ours_is_said_and_made_again(home, torch_compiles, spoil, reason):
    compile_(torch_compiles, "a")
    name, note = files(home)
    spoil(home / name, home / note)
    said: list[str] = []
    compile_(torch_compiles, "a", say=said.append)
    assert not torch_compiles.handed
    assert len(said) == 1
    assert f"compiled network {KEY} ignored" in said[0]
    assert reason in said[0]
    compile_(torch_compiles, "a")
    assert torch_compiles.handed == [b"a"]


def test_what_torch_cannot_read_or_keep_is_said(home, torch_compiles, monkeypatch):
    compile_(torch_compiles, "!a")
    said: list[str] = []
    compile_(torch_compiles, "!a", say=said.append)
    assert said == [f"compiled network {KEY} ignored: ValueError: torch cannot read it"]

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artefacts.files, "write", full)
    said.clear()
    compile_(torch_compiles, "b", key="f" * 32, say=said.append)
    assert said == ["what torch compiled is not kept: OSError: [Errno 28] No space left on device"]
    monkeypatch.undo()


def test_a_compilation_that_fails_keeps_nothing(home, torch_compiles):
    with pytest.raises(ZeroDivisionError), kept(KEY, pytest.fail):
        torch_compiles.parts[:] = ["a"]
        raise ZeroDivisionError
    assert not files(home)


def test_without_these_functions_of_torch_nothing_is_kept(home, monkeypatch):
    """As before torch 2.7."""
    monkeypatch.delattr(torch.compiler, "save_cache_artifacts")
    with kept(KEY, pytest.fail):
        pass
    assert not files(home)


def test_only_this_compilation_is_kept():
    """torch collects all of a process, and hands over what it has not collected before."""
    from torch.compiler._cache import CacheArtifactManager

    with artefacts._alone():
        inside = CacheArtifactManager._cache_info
    assert inside is not CacheArtifactManager._cache_info


def test_it_is_pruned_as_packages_are(home, torch_compiles, monkeypatch):
    monkeypatch.setattr(package, "KEPT", 2)
    for k in range(4):
        key = f"{k}" * 32
        compile_(torch_compiles, f"part {k}", key=key)
        for file in home.glob(f"{key}*"):
            os.utime(file, (1000.0 + k, 1000.0 + k))
    compile_(torch_compiles, "part 5", key="5" * 32)
    assert {file[:1] for file in files(home)} == {"3", "5"}
    assert len(files(home)) == 4
