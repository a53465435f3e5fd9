"""Pickles as NVlabs writes them are read bit for bit, and nothing that a file could bring is executed."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
from collections import OrderedDict
from importlib import import_module
from pathlib import Path

import edm_nets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fastscore.adapters import from_edm, read_edm_pickle


@pytest.fixture(autouse=True)
def nothing_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.glob("*executed*")), "something in a file was executed"


def written(path: Path, which: str = "ema") -> edm_nets.Precond:
    """Write a pickle as NVlabs' training does, and return the network in it."""
    with edm_nets.nvlabs_modules() as persistent, pytest.MonkeyPatch.context() as patch:
        patch.setattr(edm_nets, "Conv", persistent(edm_nets.Conv))
        net = persistent(edm_nets.Precond)(img_resolution=8, label_dim=3, model_type="SongUNet", channel_mult=[2, 2])
        net.model.few = torch.nn.Parameter(torch.arange(3).half())
        easy = import_module("dnnlib.util").EasyDict
        content = {which: net, "loss_fn": easy(P_mean=np.float64(-1.2), P_std=np.float32(1.2))}
        path.write_bytes(pickle.dumps(content, 4))
    return net


@pytest.mark.parametrize("which", ["ema", "net"])
def test_weights_and_arguments_come_out_bit_for_bit(tmp_path, which):
    net = written(tmp_path / "net.pkl", which=which)
    saved = read_edm_pickle(tmp_path / "net.pkl", which)
    expected = net.state_dict()
    assert set(saved.state) == set(expected) and "resample" not in saved.state  # a buffer that is not kept
    assert all(saved.state[k].equal(v) and saved.state[k].dtype == v.dtype for k, v in expected.items())
    assert saved.class_name == "Precond" and saved.init_args == []
    assert saved.init_kwargs == {
        "img_resolution": 8, "label_dim": 3, "model_type": "SongUNet", "channel_mult": [2, 2],
    }  # fmt: skip
    own = edm_nets.Precond(**saved.init_kwargs)
    del saved.state["model.few"]
    own.load_state_dict(saved.state)
    assert from_edm(own).classes == 3


def test_it_is_written_as_safetensors_and_json(tmp_path):
    written(tmp_path / "net.pkl")
    saved = read_edm_pickle(tmp_path / "net.pkl")
    saved.save(tmp_path / "folder")
    again = load_file(tmp_path / "folder/model.safetensors")
    assert set(again) == set(saved.state) and all(again[k].equal(v) for k, v in saved.state.items())
    config = json.loads((tmp_path / "folder/config.json").read_text())
    assert config == {"class_name": "Precond", "init_args": [], "init_kwargs": saved.init_kwargs}


class Reduced:
    """An object that pickles as a call."""

    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self) -> tuple[object, ...]:
        return self.call  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize(("function", "arguments"), [
    (os.system, ("touch executed",)), (exec, ("open('executed', 'w')",)), (eval, ("open('executed', 'w')",)),
    (getattr, ("x", "join")), (__import__, ("os",)), (open, ("executed", "w")), (pickle.loads, (b"N.",)),
    (np.load, ("x",)), (torch.hub.load, ("x", "y")), (torch.nn.modules.module.warnings.warn, ("x",)),
], ids=lambda v: getattr(v, "__name__", "arguments"))  # fmt: skip
@pytest.mark.parametrize("protocol", [2, 4])
def test_no_function_of_a_file_is_called(tmp_path, function, arguments, protocol):
    path = tmp_path / "net.pkl"
    path.write_bytes(pickle.dumps({"ema": Reduced(function, arguments)}, protocol))
    with pytest.raises(ValueError, match=r"net.pkl: it wants '.*', which is not loaded from a file"):
        read_edm_pickle(path)


GLOBALS = [
    ("torch.nn.modules.module", "os.system"), ("torch.nn.modules.module.warnings", "warn"), ("numpy", "load"),
    ("torch.nn.modules", "Module"), ("builtins", "set"), ("collections", "Counter"), ("numpy.core.multiarray", "load"),
    ("torch.storage", "UntypedStorage"), ("torch._utils", "_rebuild_wrapper_subclass"), ("copyreg", "_reconstructor"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "name"), GLOBALS)
def test_no_other_name_is_looked_up(tmp_path, module, name):
    path = tmp_path / "net.pkl"
    path.write_bytes(f"c{module}\n{name}\n.".encode())
    with pytest.raises(ValueError, match="which is not loaded from a file"):
        read_edm_pickle(path)


def raw(*parts: bytes | str) -> bytes:
    """Join opcodes; strings are pushed."""
    return b"".join(p if isinstance(p, bytes) else b"X" + struct.pack("<I", len(p)) + p.encode() for p in parts) + b"."


HOLDER = b"ctorch.nn.modules.linear\nLinear\n"
BROKEN = {
    "a state for a class": raw(HOLDER, b"}", "x", b"K\x01s", b"b"),
    "a state for a function": raw(b"ctorch._utils\n_rebuild_parameter\n", b"}b"),
    "a state for a dict": raw(b"}", b"}b"),
    "a state that is no dict": raw(HOLDER, b")\x81", b"K\x01b"),
    "an extension": raw(b"\x82\x01"),
    "a persistent id": raw(b"Px\n"),
    "a huge memo": raw(b"K\x01r\xff\xff\xff\x7f"),
    "a huge string": b"B\xff\xff\xff\x7fx.",
    "a huge frame": b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f.",
    "nothing": b"",
    "half an opcode": b"X\x05",
    "deep lists": b"(" * 3000 + b"l" * 3000 + b".",
    "no network": raw(b"}"),
    "a number": raw(b"K\x01"),
    "a network of another name": pickle.dumps({"G_ema": 1}),
    "a torch archive": b"PK\x03\x04",
    "a bad storage": raw(b"ctorch.storage\n_load_from_bytes\n", b"C\x03abc", b"\x85R"),
    "a scalar of objects": raw(
        b"cnumpy.core.multiarray\nscalar\n", b"cnumpy\ndtype\n", "O8", b"\x85R", b"C\x08abcdefgh", b"\x86R"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_and_hostile_files_are_refused_in_one_way(tmp_path, name):
    path = tmp_path / "net.pkl"
    path.write_bytes(BROKEN[name])
    said = {"a state for a ": ": it gives a state to a ", "a scalar of ob": ": a NumPy array of 'O8'"}.get(
        name[:14], ""
    )
    with pytest.raises(ValueError, match=rf"net\.pkl{said}"):
        read_edm_pickle(path)


def tensor_of(size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    """Return a pickle of a module with one tensor of this extent in a storage of six numbers."""
    storage = io.BytesIO()
    torch.save(torch.arange(6.0)._typed_storage(), storage, _use_new_zipfile_serialization=False)
    call = Reduced(torch.storage._load_from_bytes, (storage.getvalue(),))
    tensor = Reduced(torch._utils._rebuild_tensor_v2, (call, offset, size, stride, False, OrderedDict()))
    net = torch.nn.Linear(1, 1)
    net.__dict__["_buffers"] = {"weight": tensor}
    return pickle.dumps({"ema": net}, 4)


def test_a_tensor_lies_in_its_storage(tmp_path):
    path = tmp_path / "net.pkl"
    path.write_bytes(tensor_of((2, 2), (3, 1), 1))
    assert read_edm_pickle(path).state["weight"].tolist() == [[1.0, 2.0], [4.0, 5.0]]
    for size, stride, offset in (
        ((10**9,), (0,), 0), ((10**9, 10**9), (0, 0), 0), ((2, 2), (3, 2), 3), ((-1,), (1,), 0), ((2,), (1,), 7),
        ((2,), (-1,), 3), ((7,), (1,), 0),
    ):  # fmt: skip
        path.write_bytes(tensor_of(size, stride, offset))
        with pytest.raises(ValueError, match=r"net\.pkl"):
            read_edm_pickle(path)


def test_modules_that_contain_each_other_end(tmp_path):
    """By themselves, or so often that there would be more names than anybody's memory holds."""
    net = torch.nn.Sequential(torch.nn.Linear(1, 1))
    net.__dict__["_modules"]["self"] = net
    (tmp_path / "cycle.pkl").write_bytes(pickle.dumps({"ema": net}))
    layer = torch.nn.Sequential(torch.nn.Linear(1, 1))
    for _ in range(60):
        layer = torch.nn.Sequential(layer, layer)
    (tmp_path / "laughs.pkl").write_bytes(pickle.dumps({"ema": layer}))
    for name in ("cycle", "laughs"):
        with pytest.raises(ValueError, match="its modules contain each other"):
            read_edm_pickle(tmp_path / f"{name}.pkl")


def test_a_missing_file_or_network_is_named(tmp_path):
    with pytest.raises(ValueError, match="nothing"):
        read_edm_pickle(tmp_path / "nothing.pkl")
    written(tmp_path / "net.pkl")
    with pytest.raises(ValueError, match="it has no network 'G'; it has ema, loss_fn"):
        read_edm_pickle(tmp_path / "net.pkl", "G")
