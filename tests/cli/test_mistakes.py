"""Mistakes that people made, each with what they are told now."""

from __future__ import annotations

import gzip
import json
import math
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import fastscore as fs
from fastscore.guidance.measurements import Masked
from fastscore.model.analytic import Empirical, gaussian, mixture
from fastscore.model.folder import BUNDLED

MODEL = fs.score_model(mixture())
MASKED = Masked(torch.tensor([True, False]))
SHAPE = r"shape = 2 must be positive integers, .*did you mean \(2,\)"


class Output:
    """What diffusers' networks return."""

    def __init__(self, sample):
        self.sample = sample


def drawn(net, **settings):
    model = fs.ScoreModel(net, (2,), fs.VP())
    return fs.Sampler(model, steps=2, batch=4, **settings).run(range(4))


def sampled(*ids, **settings):
    fields = {k: settings.pop(k) for k in ("init", "noise", "known", "callback") if k in settings}
    return fs.Sampler(MODEL, **{"steps": 2, "batch": 4} | settings).run(range(4), **fields)


ENTRIES = [
    (lambda: drawn(lambda u, t, c: (u,)), r"returned a tuple of 1; .*net\(u, c_noise, cond\)\[0\]"),
    (lambda: drawn(lambda u, t, c: Output(u)), r"returned a Output; .*net\(u, c_noise, cond\)\.sample"),
    (lambda: drawn(lambda u, t, c: None), "returned None; .*does its forward end in a return"),
    (lambda: drawn(lambda u, t, c: u.numpy()), "returned a ndarray; .*torch.as_tensor"),
    (lambda: drawn(lambda u, t, c: {"sample": u}), "returned a dict"),
    (lambda: drawn(lambda u, t, c: u.long()), "returned torch.int64; it must return real floating-point"),
    (lambda: drawn(lambda u: u), r"net is called as net\(u, c_noise, cond\) or net\(u, c_noise\)"),
    (lambda: Masked(torch.ones(2)), "mask is torch.float32; it must be bool, .*mask > 0"),
    (lambda: Masked(np.ones(2)), r"Masked: mask = .* must be a Tensor, not a ndarray"),
    (lambda: fs.PiGDM(MASKED, noise=torch.ones(2)), "noise = .* must be a number, not a Tensor, one for all"),
    (lambda: fs.DPS(MASKED, scale=np.ones(2)), "scale = .* must be a number, not a ndarray, one for all"),
    (lambda: fs.PiGDM(lambda x: x), "PiGDM: operator = .* must be a Operator|an Operator"),
    (lambda: fs.Execution(batch=1.5), "batch = 1.5 must be a whole number, not a float"),
    (lambda: fs.Execution(batch=True), "batch = True must be a whole number, not a bool"),
    (lambda: sampled(steps="3"), "steps = '3' must be a whole number or None, not a str"),
    (lambda: sampled(clip=math.nan), "clip = nan must be a number, not NaN"),
    (lambda: mixture(0), "components = 0 must be at least 1"),
    (lambda: mixture(std=-1.0), "stds must be positive"),
    (lambda: mixture(radius=math.inf), "must be finite"),
    (lambda: gaussian(shape=2), SHAPE),
    (lambda: fs.ScoreModel(lambda u, t, c: u, 2, fs.VP()), SHAPE),
    (lambda: fs.Part(2, fs.VP()), SHAPE),
    (lambda: sampled(start="state", init=torch.full((2,), math.nan)), "init is NaN or Inf for 4 of 4 samples"),
    (lambda: sampled(start="state", init=torch.ones(2, device="meta")), "init is on meta, without values"),
    (lambda: sampled(known=torch.ones(2)), r"known is a Tensor; it must be Known\(y, mask\)"),
    (lambda: Empirical(torch.eye(2).to_sparse()), "Empirical: points = .* must be a dense Tensor"),
    (lambda: Masked(torch.ones(2, dtype=torch.bool, device="meta")), "mask = .* must be a dense Tensor"),
    (lambda: sampled(callback=5), "callback = 5 must be a function"),
    (lambda: fs.Times((14.7, 1.0, 0.0))(fs.EDM(0.03, 14.6)), r"times 14.7 .. 0.0 leave EDM's range 14.6 .. 0.0"),
    (lambda: sampled(noise=torch.zeros(0, 4, 2)), "recorded noise has 0 draws; this plan needs 1"),
    (lambda: sampled(clip=1.0, solver="heun"), r"guide=DynamicThreshold\(\) or guide=StaticThreshold\(bound\)"),
    (lambda: fs.Sampler(torch.nn.Linear(2, 2)), "model = Linear.* must be a ScoreModel, not a Linear"),
    (lambda: sampled(guidance=2.0), "guidance = 2.0 must be a Guidance or None, not a float"),
    (lambda: sampled(solver=fs.Heun), r"not a type; make one, Heun\(..\)"),
    (lambda: sampled(grid="karas"), r"grid = 'karas' \(nearest: karras\) must be one of default, uniform"),
    (lambda: sampled(grid=5), "grid = 5 must be a Grid or a Times or a Span or a string or None"),
    (lambda: sampled(schedule="vp"), "schedule = 'vp' must be a Schedule or None, not a str"),
    (lambda: fs.Churn(fs.Heun), "Heun is a class of them: make one"),
    (lambda: fs.VP(t_end=None), "VP: t_end = None must be a number, not None"),
    (lambda: fs.Pair(lambda t: t, lambda t: "x"), "sigma_fn of two times raised ValueError"),
    (lambda: fs.smld(2**31), "n = 2147483648 must be at least 1 and at most"),
    (lambda: fs.AncestralSplit(fs.Euler(), 10**400), "eta = .* must be a number"),
    (lambda: sampled(device="tpu"), "device = 'tpu' must be cpu, cuda or cuda:N"),
    (lambda: fs.load_model("fashion", "tpu"), "device = 'tpu' must be cpu, or a CUDA device that is here"),
]  # fmt: skip


@pytest.mark.parametrize("call, message", ENTRIES)
def test_a_mistake_is_named(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what is said without a CUDA device; this machine has one")
def test_cuda_without_cuda():
    with pytest.raises(ValueError, match="device = cuda: torch sees no CUDA device here; use device='cpu'"):
        sampled(device="cuda")


def test_what_is_no_mistake():
    assert drawn(lambda u, t: u).shape == (4, 2)  # two arguments
    above = float(np.nextafter(14.6, 15.0))  # one rounding above sigma_max
    assert fs.Times((above, 1.0, 0.0))(fs.EDM(0.03, 14.6)).tolist() == [14.6, 1.0, 0.0]
    state = {"start": "state", "solver": "heun", "init": torch.ones(2)}  # a plan without draws
    assert sampled(**state, noise=torch.zeros(0, 4, 2)).equal(sampled(**state))
    assert sampled(steps=np.int64(2), clip=np.float32(0.5)).equal(sampled(steps=2, clip=0.5))
    execution = fs.Execution(**{"batch": np.int64(4)})
    assert type(execution.batch) is int and json.dumps(execution.to_dict())


def test_guides_in_place_of_a_clip_go_with_every_solver():
    for guide in (fs.StaticThreshold(1.0), fs.DynamicThreshold()):
        assert float(sampled(solver="heun", guide=guide).abs().max()) <= 1.0


def test_a_warning_points_at_the_caller():
    with pytest.warns(UserWarning, match="noise of 3.41 is left") as caught:
        fs.Sampler(MODEL, schedule=fs.VP(), grid=fs.uniform(5, end=0.5, clean=True), batch=4)
    assert caught[0].filename == __file__


# --- files, on the command line


def png(width: int, height: int, body: bytes = b"") -> bytes:
    """Return a grey PNG whose header says what it likes."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [header, b"IDAT" + (body or zlib.compress(b"\0" * 100)), b"IEND"]
    packed = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


IMAGES = {
    "a decompression bomb": png(50_000, 50_000),
    "a large picture": png(13_500, 13_500),
    "a length that lies": png(28, 28)[:33] + b"\xff\xff\xff\xffIDAT" + b"\0" * 30,
    "a broken chunk": png(28, 28).replace(b"IDAT", b"I\x00AT"),
    "a file that ends early": png(28, 28)[:45],
    "no picture": b"nothing",
    "an empty file": b"",
}


@pytest.mark.parametrize("kind", IMAGES)
def test_a_picture_that_cannot_be_read_is_named(run, tmp_path, kind):
    (tmp_path / "set").mkdir()
    Image.new("L", (28, 28)).save(tmp_path / "set" / "a.png")
    (tmp_path / "set" / "bad.png").write_bytes(IMAGES[kind])
    for words in (
        ["train", tmp_path / "set"],
        ["inpaint", "fashion", tmp_path / "set" / "bad.png", "--box", "1,1,2,2"],
    ):
        code, _, error = run(*words, "--out", tmp_path / "out")
        assert code == 2 and "bad.png" in error and len(error.splitlines()) <= 5, error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("cut", [40, -4, 0])
def test_a_truncated_gz_is_named_and_no_interruption(run, tmp_path, cut):
    head = b"\x00\x00\x08\x03" + b"".join(k.to_bytes(4, "big") for k in (2, 28, 28))
    name = "train-images-idx3-ubyte.gz"
    noise = np.random.default_rng(0).integers(0, 255, 1568, np.uint8).tobytes()
    (tmp_path / name).write_bytes(gzip.compress(head + noise)[:cut])
    code, _, error = run("train", tmp_path, "--out", tmp_path / "out")
    assert code == 2 and name in error and "interrupted" not in error


@pytest.fixture
def folders(tmp_path):
    """Return a function that writes the folder of a bundled model with a changed config."""

    def write(source: str, change) -> str:
        folder = tmp_path / "model"
        folder.mkdir()
        config = json.loads((BUNDLED / source / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))
        return str(folder)

    return write


@pytest.mark.parametrize("name, value", [("t_end", None), ("sigma_max", "80"), ("sigma_min", [1]), ("sigma_max", True)])
def test_a_schedule_of_wrong_types_is_named(run, folders, tmp_path, name, value):
    kind = "VP" if name == "t_end" else "EDM"
    model = folders("fashion", lambda config: config.update(schedule={"name": kind, name: value}))
    code, _, error = run("sample", model, "--out", tmp_path / "out")
    assert code == 2 and "config.json" in error and f"{kind}: {name} = " in error


@pytest.mark.parametrize(
    "name, value", [("classes", None), ("width", "8"), ("channels", [1]), ("width", -3), ("name", None)]
)
def test_a_classifier_of_wrong_types_is_named(run, folders, tmp_path, name, value):
    np.savez(tmp_path / "x.npz", samples=np.zeros((4, 28, 28, 1), np.uint8))
    np.savez(tmp_path / "y.npz", samples=np.ones((4, 28, 28, 1), np.uint8))
    model = folders("fashion-classifier", lambda config: config["net"].update({name: value}))
    code, _, error = run("evaluate", tmp_path / "x.npz", "--data", tmp_path / "y.npz", "--classifier", model)
    assert code == 2 and "config.json" in error
