"""Model folders that would take the machine: refused by their config and the header of their weights."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from fastscore.model.folder import BUNDLED, load_model, tensor_shapes
from fastscore.model.nets import NETS, build, outline
from fastscore.training.classifier import load_classifier

SPECS = [
    {"name": "UNet", "channels": 1, "size": 8, "width": 16, "classes": 3},
    {"name": "UNet", "channels": 1, "size": 8, "width": 16, "embedding": "sinusoidal", "attention": [0]},
    {"name": "ScoreNet"},
    {"name": "MLP", "dim": 2, "embedding": "learned", "classes": 2},
    {"name": "Transformer", "tokens": 4, "dim": 2, "classes": 2},
    {"name": "Classifier", "channels": 1, "classes": 10},
]


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(BUNDLED / "fashion", folder)
    return folder


def edit(folder, **changes):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    for key, value in changes.items():
        where = config["net"] if key in config["net"] or key in ("mult", "blocks") else config
        where[key] = value
    file.write_text(json.dumps(config))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec['name']} {spec.get('embedding', '')}")
def test_an_outline_has_the_names_and_shapes_of_the_network_and_no_memory(spec):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    drawn = outline(spec)
    assert torch.equal(before, torch.get_rng_state())
    net = build(spec)
    assert {k: v.shape for k, v in drawn.state_dict().items()} == {k: v.shape for k, v in net.state_dict().items()}
    assert all(v.is_meta for v in drawn.state_dict().values())
    torch.manual_seed(0)
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in spec.items() if k != "name"}
    plain = NETS[spec["name"]](**arguments).state_dict()
    assert all(torch.equal(v, plain[k]) for k, v in net.state_dict().items())


@pytest.mark.slow
def test_an_outline_loads_no_compiler():
    code = """if True:
        import sys
        from fastscore.model.folder import load_model
        load_model("fashion")
        print("sympy" in sys.modules)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.thirds
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 2048}, r"model.safetensors: .* has shape \(\d+,.*\) but the network wants \(4096,\)"),
        ({"blocks": [1_000_000, 1]}, "net: blocks = 1000000 is out of bounds; at most 64 is taken"),
        ({"mult": [1, 1_000_000]}, "net: mult = 1000000 is out of bounds; at most 64 is taken"),
        ({"blocks": [1] * 1000, "mult": [1] * 1000}, "1000 entries; at most 16"),
        ({"width": 10**12}, "net: width = 1000000000000 is out of bounds; at most 65536 is taken"),
        ({"width": 1e300}, r"net: width = 1e\+300 is out of bounds"),
        ({"size": 65_536, "shape": [1, 65_536, 65_536]}, "is of 4,294,967,296 numbers; at most 67,108,864 are taken"),
        ({"classes": 10**9}, "classes = 1000000000"),
        ({"net": 3}, "must describe a network|missing or malformed"),
    ],
)
def test_sizes_of_a_config_are_bounded_and_compared_before_memory_is_taken(model, changes, message):
    edit(model, **changes)
    if "classes" in changes:
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**config, "classes": 10**9}))
    load_model("fashion")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=message) as error:
        load_model(model)
    assert str(model) in str(error.value) and "\n" not in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_a_network_that_does_not_fit_in_memory_is_not_built(monkeypatch):
    with pytest.raises(
        ValueError, match=r"net UNet has [\d,]+ parameters, and 5 copies takes .* GB of memory and .* make it smaller"
    ):
        build({"name": "UNet", "channels": 3, "size": 32, "width": 65_536, "mult": [64, 64]}, copies=5)
    monkeypatch.setattr("fastscore.data.limits.available_memory", lambda: 1_000)
    with pytest.raises(ValueError, match="parameters, and takes"):
        build({"name": "MLP", "dim": 2})


def header(entries, length=None):
    text = json.dumps(entries).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        header({}, 1 << 40),
        header({}, (1 << 64) - 1),
        header({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}),
        header({"a": {"dtype": "F32", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 4]}}) + bytes(4),
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}) + bytes(8),
        header({"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}) + bytes(8),
        header({"a": 3}),
        header([]),
        header({}, 3) + b"((((",
    ],
)
def test_headers_of_weights_that_lie_are_refused(model, data):
    file = model / "model.safetensors"
    file.write_bytes(data)
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        tensor_shapes(file)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load_model(model)


def test_a_long_header_is_refused_before_it_is_read(model):
    file = model / "model.safetensors"
    with file.open("wb") as opened:
        opened.write((1 << 30).to_bytes(8, "little"))
        opened.truncate(1 << 31)  # of holes
    with pytest.raises(ValueError, match=r"a header of 1,073,741,824 bytes; at most 67,108,864 can be"):
        load_model(model)


def test_weights_of_whole_numbers_are_no_weights(model):
    state = {k: v.to(torch.int32) for k, v in load_model("fashion").net.state_dict().items()}
    save_file(state, model / "model.safetensors")
    with pytest.raises(ValueError, match="is of I32; the network wants F64 F32 F16 BF16"):
        load_model(model)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pipe_or_device_in_a_model_folder_is_not_waited_for(model, name):
    (model / name).unlink()
    os.mkfifo(model / name)
    with pytest.raises(ValueError, match=rf"{name} is a named pipe and no file"):
        load_model(model)
    (model / name).unlink()
    (model / name).symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=rf"{name} is a device and no file"):
        load_model(model)


def test_a_config_of_holes_is_refused_by_its_size(model):
    with (model / "config.json").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match=r"config.json has 1,099,511,627,776 bytes"):
        load_model(model)


def test_classifiers_are_bounded_as_models_are(tmp_path):
    folder = tmp_path / "c"
    shutil.copytree(BUNDLED / "fashion-classifier", folder)
    config = json.loads((folder / "config.json").read_text())
    for net, message in (
        ({**config["net"], "width": 16_384}, "but the network wants"),
        ({**config["net"], "classes": 10**9}, "out of bounds"),
        ([], "must describe a network"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, "net": net}))
        with pytest.raises(ValueError, match=message):
            load_classifier(folder)
