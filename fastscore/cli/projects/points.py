"""Learns how points are distributed, and draws new ones: python main.py. Stopped and run again, it goes on."""

import numpy as np

import fastscore as fs

DATA = "data/points.npy"  # yours: floats [N, D], a row for each point, the columns in any units
EXAMPLES = 200_000  # to look at while training; a million or more where points have much to say
NEW = 1_000


def show(seen: int, total: int, figures: dict[str, float]) -> None:
    """Print how far training is."""
    print(f"\r{seen:,} of {total:,} examples, loss {figures['loss']:.3f}", end="\n" * (seen >= total), flush=True)


points = np.load(DATA)
net = {"name": "MLP", "dim": points.shape[1], "width": 128}
config = fs.TrainConfig(images=EXAMPLES, batch=256, lr=2e-3, dtype="fp32", compile=False)
model = fs.train(net, points, config=config, out="model", progress=show)

# A point is a function of the model, these settings, the seed and its number: the same whatever else is drawn.
sampler = fs.Sampler(model, solver="dpmpp-2m", steps=20, batch=500)
request = sampler.request(range(NEW), seed=0)
fs.draw(sampler, request, "samples", overwrite=True)

new = np.load("samples/samples.npz")["samples"]
print("samples/: samples.npz, grid.png, run.json")
print("mean of the data", points.mean(0).round(2), "and of the new points", new.mean(0).round(2))
print("their spread", points.std(0).round(2), "and", new.std(0).round(2))
