"""Folders and pipelines of diffusers, and the images that their autoencoders make of samples."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from diffusers_nets import diffusers, dit, normals, same, scheduler, vae

import fastscore as fs
from fastscore.adapters import from_diffusers
from fastscore.adapters.diffusers.latents import latents_of
from fastscore.model.decoder import Decoder
from fastscore.output.store.job import model_digest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.nightly,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("dit")
    diffusers.DiTPipeline(dit(), vae(), scheduler("DPMSolverMultistep")).save_pretrained(place)
    return place


def test_folder_pipeline_and_network_are_one(folder):
    pipeline = diffusers.DiTPipeline.from_pretrained(folder)
    found = [
        from_diffusers(folder, steps=5),
        from_diffusers(pipeline, steps=5),
        from_diffusers(pipeline.transformer, pipeline.scheduler, steps=5),
        from_diffusers(folder / "transformer", dict(pipeline.scheduler.config), steps=5),
        from_diffusers(str(folder), folder / "scheduler", steps=5),
    ]
    x = [fs.Sampler(model, batch=2, **settings).run(range(2), labels=1) for model, settings in found]
    assert all(x[0].equal(other) for other in x[1:])
    assert [model.decoder is not None for model, _ in found] == [True, True, False, False, True]


def test_solver_of_ones_own(folder):
    model, settings = from_diffusers(folder, solver="heun", steps=6)
    sampler = fs.Sampler(model, batch=2, **settings)
    assert sampler.plan is not None and sampler.plan.nfe == 11
    copied = pickle.loads(pickle.dumps(sampler))
    assert copied.run(range(2), labels=1).equal(sampler.run(range(2), labels=1))


def test_code_of_a_folder_is_not_run(folder, tmp_path):
    index = json.loads((folder / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "transformer": ["my_code", "Net"]}))
    with pytest.raises(ValueError, match=r"my_code.*only classes of diffusers"):
        from_diffusers(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "transformer_2": index["transformer"]}))
    (tmp_path / "transformer_2").symlink_to(folder / "transformer")
    for name in ("transformer", "scheduler", "vae"):
        (tmp_path / name).symlink_to(folder / name)
    with pytest.raises(ValueError, match="transformer_2 beside"):
        from_diffusers(tmp_path)
    with pytest.raises(ValueError, match=r"no model_index\.json"):
        from_diffusers(tmp_path / "nothing")


def test_latents_are_decoded(folder):
    model, settings = from_diffusers(folder, steps=3, decode_batch=2)
    x = fs.Sampler(model, batch=4, **settings).run(range(5), labels=1)
    decoder, own = model.decoder, vae()
    assert isinstance(decoder, Decoder) and decoder.shape == (3, 16, 16)
    with torch.no_grad():
        same(own.decode(x / own.config.scaling_factor).sample, decoder(x), 1e-6)
    assert torch.cat([decoder(x[k : k + 1]) for k in range(5)]).equal(decoder(x))
    assert decoder.encode(decoder(x)).shape == x.shape


@pytest.mark.parametrize("tiled", [False, True])
def test_shift_mean_and_std_of_latents(tiled):
    z = normals((4, 12, 12), draws=1)[0]
    moved = {"scaling_factor": 0.5, "shift_factor": 0.25}
    net = vae(**moved, sample_size=8)
    decoder = latents_of(net, (4, 12, 12), tiled=tiled)
    with torch.no_grad():
        if tiled:
            net.enable_tiling()
        own = net.decode(z / 0.5 + 0.25).sample
    net.disable_tiling()
    same(own, decoder(z), 1e-6)
    assert not net.use_tiling
    with torch.no_grad():
        same((net.encode(own).latent_dist.mode() - 0.25) * 0.5, latents_of(net, (4, 12, 12)).encode(own), 1e-5)
    mean, std = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]
    net = vae(latents_mean=mean, latents_std=std, scaling_factor=0.5)
    m, s = (torch.tensor(v).view(1, 4, 1, 1) for v in (mean, std))
    with torch.no_grad():
        same(net.decode(z * s / 0.5 + m).sample, latents_of(net, (4, 12, 12))(z), 1e-6)


@pytest.mark.parametrize("kind", ["AutoencoderTiny", "VQModel"])
def test_other_autoencoders(kind):
    torch.manual_seed(0)
    if kind == "AutoencoderTiny":
        channels = {"encoder_block_out_channels": (4, 4), "decoder_block_out_channels": (4, 4)}
        net = diffusers.AutoencoderTiny(**channels, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)).eval()
    else:
        net = diffusers.VQModel(
            block_out_channels=(4,), latent_channels=4, num_vq_embeddings=8, norm_num_groups=2
        ).eval()
    z = normals((4, 8, 8), draws=1)[0]
    decoder = latents_of(net, (4, 8, 8), batch=2)
    with torch.no_grad():
        own = net.decode(z / (net.config.scaling_factor or 1.0)).sample
    same(own, decoder(z), 1e-6)
    assert decoder.encode(own).shape == z.shape


def test_files_hold_decoded_images(folder, tmp_path, run):
    code, _, err = run(
        "sample", folder, "-n", 5, "--class", 2, "--steps", 3, "--batch", 4, "--network", "own",
        "--shard-size", 4, "--png", "--out", tmp_path / "out", "--quiet",
    )  # fmt: skip
    assert code == 0, err
    with np.load(tmp_path / "out" / "samples.npz") as arrays:
        samples = arrays["samples"]
    model, settings = from_diffusers(folder, solver="dpmpp-2m", steps=3)
    x = fs.Sampler(model, batch=4, **settings).run(range(5), labels=2)
    assert model.decoder is not None
    images = (127.5 * model.decoder(x) + 128.0).floor().clamp(0.0, 255.0).to(torch.uint8)
    assert (samples == images.permute(0, 2, 3, 1).numpy()).all()
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"samples.npz", "grid.png", "png", "run.json"}
    before = model_digest(model)
    model.decoder.net.vae.decoder.conv_out.bias.data.add_(1.0)
    assert model_digest(model) != before
