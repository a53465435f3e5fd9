"""Small runs to be drawn, and the faults of networks: what is in FAULTS is done to every evaluation."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from fastscore.model.score import ScoreModel
from fastscore.output.store.formats import Shard, decode
from fastscore.output.store.manifest import Manifest
from fastscore.process.continuous import EDM
from fastscore.process.parametrization import Parametrization
from fastscore.sampler import Sampler
from fastscore.solvers.adaptive import Adaptive

FAULTS: list = []  # functions of (estimate, c_noise, cond), which return the estimate; a list is no part of a digest
LAYERS = [torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.Conv2d(16, 1, 3, padding=1)]
for _layer in LAYERS:
    _values = np.random.default_rng(_layer.in_channels).normal(0.0, 0.2, _layer.weight.shape)
    _layer.weight.data = torch.from_numpy(_values).float()
    torch.nn.init.zeros_(_layer.bias)


def image(u, c_noise, cond=None):
    """Return an estimate of x0 of images [n, 1, 8, 8] by convolutions, whose last bits depend on n."""
    return _faulty(LAYERS[1](torch.tanh(LAYERS[0](u))), c_noise, cond)


def point(u, c_noise, cond=None):
    """Return an estimate of x0 of points [n, 3]."""
    return _faulty(torch.tanh(u), c_noise, cond)


def _faulty(x0, c_noise, cond):
    for fault in FAULTS:
        x0 = fault(x0, c_noise, cond)
    return x0


def sampler(net=point, batch=8, steps=4, solver="heun", **settings):
    """Return a sampler of points or images that is told each sample's id as its condition, or labels."""
    shape = (1, 8, 8) if net is image else (3,)
    told = settings or {"cond_shape": (1,)}
    model = ScoreModel(net, shape, EDM(), Parametrization("x0"), **told)
    steps = {} if isinstance(solver, Adaptive) else {"steps": steps}
    return Sampler(model, solver=solver, batch=batch, network="own", **steps)


def request(source, ids, seed=0):
    """Return the request of these ids, each told to its sample."""
    return source.request(ids, seed, cond=torch.tensor([[float(k)] for k in ids]).view(-1, 1))


def by_id(arrays):
    """Return the sha256 of each sample by its id; an id that comes twice is an error."""
    found = {
        k: hashlib.sha256(x.tobytes()).hexdigest()
        for k, x in zip(arrays["ids"].tolist(), arrays["samples"], strict=True)
    }
    assert len(found) == len(arrays["ids"])
    return found


def shards_below(folder) -> dict[int, bytes]:
    """Return the files of the shards of a run that is not complete, by number."""
    return {int(path.stem): path.read_bytes() for path in folder.rglob("shards/*/*.npz")}


def shards_of(place, manifest: Manifest) -> dict[int, Shard]:
    """Return the shards that are at a place."""
    names = [entry.name for entry in place.entries("shards/")]
    shards = [decode(place.read(name), manifest.format) for name in names]
    return {shard.number: shard for shard in shards}
