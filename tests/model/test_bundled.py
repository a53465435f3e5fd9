"""What is promised of the bundled model, on the model itself."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fastscore import cli
from fastscore.data import load as data
from fastscore.model.folder import BUNDLED, bundled, load_model
from fastscore.ops.quantize import quantize_ref
from fastscore.process.grid import karras
from fastscore.report.metrics import features, frechet_distance
from fastscore.sampler import Sampler
from fastscore.training.classifier import load_classifier


@pytest.fixture(scope="module")
def model():
    return load_model("fashion")


def samples(out: Path, *argv: str) -> np.ndarray:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["sample", "fashion", "--steps", "3", "--network", "own", "--quiet", "--out", str(out), *argv])
    assert not stopped.value.code
    with np.load(out / "samples.npz") as saved:
        return saved["samples"]


def test_files_are_small_and_say_how_they_were_made():
    assert bundled() == ["fashion"]
    assert (BUNDLED / "fashion" / "model.safetensors").stat().st_size <= 6_000_000
    assert (BUNDLED / "fashion-classifier" / "model.safetensors").stat().st_size <= 1_000_000
    for name in ("fashion", "fashion-classifier"):
        info = json.loads((BUNDLED / name / "config.json").read_text())["info"]
        assert info["command"].startswith("fastscore train")
    rows = np.genfromtxt(BUNDLED / "fashion" / "loss.csv", delimiter=",", names=True)
    assert rows["images"][-1] == json.loads((BUNDLED / "fashion" / "config.json").read_text())["info"]["images"]
    assert rows["loss"][-1] < 0.2


@pytest.mark.parametrize(
    ("n", "batch"), [(8, ("--batch", "4")), pytest.param(64, (), marks=pytest.mark.slow, id="default-batch")]
)
def test_a_sample_is_the_same_bytes_alone_or_with_others(tmp_path, n, batch):
    whole = samples(tmp_path / "all", "-n", str(n), *batch)
    assert (whole.dtype, whole.shape) == (np.uint8, (n, 28, 28, 1))
    assert np.array_equal(samples(tmp_path / "again", "-n", str(n), *batch), whole)
    assert np.array_equal(samples(tmp_path / "7", "-n", "7", *batch), whole[:7])
    assert np.array_equal(samples(tmp_path / "1", "-n", "1", *batch), whole[:1])
    some = [n - 1, 2, n // 2]
    assert np.array_equal(samples(tmp_path / "some", "--ids", ",".join(map(str, some)), *batch), whole[some])


FEW = ("--ids", "0,1", "--batch", "2", "--steps", "12")


@pytest.fixture(scope="module")
def edm(tmp_path_factory):
    return samples(tmp_path_factory.mktemp("edm"), *FEW).astype(float)


OTHERS = ("vp", "subvp", "ve", "vp-cosine", "tutorial", "ddpm", "ddpm-cosine")


@pytest.mark.parametrize("schedule", ["flow", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_one_network_runs_on_every_schedule(tmp_path, schedule, edm):
    """All schedules integrate the same flow, so the same seed and id give nearly the same image."""
    ours = samples(tmp_path / schedule, *FEW, "--schedule", schedule).astype(float)
    for k in range(2):
        assert np.corrcoef(ours[k].ravel(), edm[k].ravel())[0, 1] > 0.9


def test_another_micro_batch_agrees_within_the_stated_tolerance(model):
    a, b = (Sampler(model, grid=karras(3), batch=batch).run(range(12), labels="random") for batch in (12, 5))
    assert (a - b).abs().max() < 2e-4 * 2.0  # of the range -1 .. 1


def test_classes_are_recognised_by_the_classifier(model):
    labels = torch.arange(20) % 10
    x = Sampler(model, grid=karras(8), batch=20).run(range(20), labels=labels)
    net, names = load_classifier("fashion-classifier")
    _, predicted = features(net, quantize_ref(x).numpy())
    assert list(model.class_names) == names
    assert (predicted == labels.numpy()).mean() >= 0.7


@pytest.mark.slow
@pytest.mark.nightly
def test_samples_are_near_the_data():
    if not (Path("/usr/share/datasets/fashion-mnist").is_dir() or os.environ.get("FASHION_MNIST")):
        pytest.skip("compares with Fashion-MNIST, which is not here: install Debian's dataset-fashion-mnist")
    test = data.load("fashion-mnist", "test").x
    model = load_model("fashion")
    x = Sampler(model, grid=karras(10), batch=64).run(range(512), labels="random")
    net, _ = load_classifier("fashion-classifier")
    ours, reference = features(net, quantize_ref(x).numpy())[0], features(net, test)[0]
    noise = np.random.default_rng(0).integers(0, 256, (512, 28, 28, 1), dtype=np.uint8)
    floor = frechet_distance(features(net, data.load("fashion-mnist").x[:512])[0], reference)
    assert frechet_distance(ours, reference) < 4 * floor
    assert frechet_distance(features(net, noise)[0], reference) > 20 * floor
