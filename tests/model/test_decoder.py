"""Decoders: micro-batches of one size, the files of latent models, and latents that nothing decodes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import fastscore as fs
from fastscore.data.load import load
from fastscore.errors import NonFiniteError
from fastscore.model.decoder import Decoder
from fastscore.output.store.job import model_digest

LATENT, IMAGE = (2, 3, 3), (3, 6, 6)


def drawn(n, shape=LATENT):
    return torch.from_numpy(np.random.default_rng(n).standard_normal((n, *shape))).float()


class Net(nn.Module):
    """A decoder that notes the batches it sees, and mixes them as a layer that depends on its batch would."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.ConvTranspose2d(2, 3, 2, 2)
        self.drop = nn.Dropout(0.5)
        self.seen: list[int] = []

    def forward(self, z):
        self.seen.append(len(z))
        return self.drop(self.up(z)).tanh() + 0.01 * len(z)


@pytest.fixture
def net():
    return Net()


@pytest.fixture
def model(net):
    score = fs.ScoreModel(lambda u, c_noise: 0.5 * u, LATENT, fs.VP())
    return replace(score, decoder=Decoder(net, IMAGE, batch=4))


@pytest.fixture
def latents():
    return (5.0 + 3.0 * np.random.default_rng(0).standard_normal((16, 4, 8, 8))).astype(np.float32)


def test_images_depend_on_their_own_sample_alone(net):
    decoder, z = Decoder(net, IMAGE, batch=4), drawn(10)
    images = decoder(z)
    assert images.shape == (10, *IMAGE) and set(net.seen) == {4}
    assert torch.cat([decoder(z[k : k + 1]) for k in (7, 2)]).equal(images[[7, 2]])
    assert decoder(z[:0]).shape == (0, *IMAGE)


def test_network_is_left_as_it_was(net):
    net.train()
    net.up.eval()
    decoder, z = Decoder(net, IMAGE), drawn(2)
    images = decoder(z)
    assert images.equal(decoder(z))  # nothing is dropped
    assert net.training and net.drop.training and not net.up.training
    assert not images.requires_grad


def test_decoder_says_what_is_wrong(net):
    z = drawn(2)
    with pytest.raises(ValueError, match=r"returned \(3, 6, 6\) a sample; its shape is \(3, 5, 6\)"):
        Decoder(net, (3, 5, 6))(z)
    broken = Decoder(lambda z: torch.zeros(len(z), *IMAGE).where(z[:, :1, :1, :1] < 5.0, torch.nan), IMAGE, batch=2)
    with pytest.raises(NonFiniteError, match="sample 17; in float16"):
        list(broken.parts(torch.cat([z, z + 10.0, z]), torch.tensor([3, 4, 17, 5, 6, 7])))
    with pytest.raises(ValueError, match="has no encoder"):
        Decoder(net, IMAGE).encode(drawn(2, IMAGE))
    with pytest.raises(ValueError, match="batch = 0"):
        Decoder(net, IMAGE, batch=0)


def test_way_back():
    pool = partial(nn.functional.avg_pool2d, kernel_size=2)
    decoder = Decoder(Net(), IMAGE, batch=4, encoder=lambda images: pool(images)[:, :2])
    assert decoder.encode(drawn(5, IMAGE)).shape == (5, *LATENT)


def test_files_hold_decoded_images(model, tmp_path):
    sampler = fs.Sampler(model, steps=2, batch=3)
    request = sampler.request(range(7), seed=1)
    record = fs.draw(sampler, request, tmp_path / "out", png=True)
    with np.load(tmp_path / "out" / "samples.npz") as arrays:
        samples = arrays["samples"]
    x = sampler.run(request)
    assert x.shape == (7, *LATENT)  # a run returns the samples
    images = (127.5 * model.decoder(x) + 128.0).floor().clamp(0.0, 255.0).to(torch.uint8)
    assert (samples == images.permute(0, 2, 3, 1).numpy()).all()
    assert record["manifest"]["what"]["decoded"] == [3, 6, 6]
    assert len(list((tmp_path / "out" / "png").iterdir())) == 7 and (tmp_path / "out" / "grid.png").exists()
    shards = fs.draw(sampler, request, tmp_path / "shards", shard=3, gathered=False)
    assert shards["manifest"]["shard"] == 3
    with np.load(next((tmp_path / "shards" / "shards").rglob("*0.npz"))) as arrays:
        assert (arrays["samples"] == samples[:3]).all()


def test_weights_of_the_decoder_are_part_of_a_run(model, net, tmp_path):
    before = model_digest(model)
    sampler = fs.Sampler(model, steps=2, batch=3)
    fs.draw(sampler, sampler.request(range(3)), tmp_path / "out")
    net.up.weight.data.mul_(2.0)
    assert model_digest(model) != before
    with pytest.raises(ValueError, match="model"):
        fs.draw(sampler, sampler.request(range(3)), tmp_path / "out")


def test_latents_are_read_as_they_are(latents, tmp_path):
    z = latents
    np.save(tmp_path / "z.npy", z)
    np.savez(tmp_path / "z.npz", latents=z, labels=np.arange(16) % 3)
    with pytest.raises(ValueError, match="float images"):
        load(str(tmp_path / "z.npy"))
    loaded, labelled = load(str(tmp_path / "z.npy"), kind="latents"), load(str(tmp_path / "z.npz"))
    assert loaded.latents and labelled.latents and (loaded.x == z).all() and labelled.class_names == ("0", "1", "2")
    assert loaded.shape == (4, 8, 8) and loaded.standardised().transform is None
    for bad in (z[:, 0], z.astype(np.uint8), np.full_like(z, np.nan)):
        np.save(tmp_path / "bad.npy", bad)
        with pytest.raises(ValueError, match=r"latents|finite"):
            load(str(tmp_path / "bad.npy"), kind="latents")
    with pytest.raises(ValueError, match="latents are floats"):
        load(str(tmp_path), kind="latents")


def written_as_they_are(model, tmp_path):
    sampler = fs.Sampler(model, steps=1, batch=4)
    fs.draw(sampler, sampler.request(range(3)), tmp_path / "out")
    with np.load(tmp_path / "out" / "samples.npz") as arrays:
        assert arrays["samples"].dtype == np.float32 and arrays["samples"].shape == (3, 4, 8, 8)
    assert not (tmp_path / "out" / "grid.png").exists()
    with pytest.raises(ValueError, match="not images"):
        fs.draw(sampler, sampler.request(range(3)), tmp_path / "png", png=True)


def test_latents_without_a_decoder_are_no_images(tmp_path):
    model = fs.ScoreModel(lambda u, c_noise: 0.5 * u, (4, 8, 8), fs.VP(), info={"latents": True})
    written_as_they_are(model, tmp_path)


@pytest.mark.slow
def test_latents_train_in_their_own_units(latents, tmp_path, run):
    np.save(tmp_path / "z.npy", latents)
    net = ("--width", 8, "--mult", 1, "--blocks", 1, "--no-compile", "--dtype", "fp32")
    code, _, err = run(
        "train", tmp_path / "z.npy", "--latents", "--images", 8, "--batch", 4, *net, "--quiet", "--out", tmp_path / "m"
    )
    assert code == 0, err
    model = fs.load_model(str(tmp_path / "m"))
    assert model.info["latents"] and model.parametrization.sigma_data == 3.0  # as measured
    written_as_they_are(model, tmp_path)
