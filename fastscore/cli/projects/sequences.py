"""Learns sequences, and draws new ones: python main.py. Stopped and run again, it goes on."""

import numpy as np

import fastscore as fs

DATA = "data/sequences.npy"  # yours: floats [N, L, C], L places with C values each, those in any units
EXAMPLES = 40_000  # to look at while training; a million or more where sequences have much to say
NEW = 200


def show(seen: int, total: int, figures: dict[str, float]) -> None:
    """Print how far training is."""
    print(f"\r{seen:,} of {total:,} examples, loss {figures['loss']:.3f}", end="\n" * (seen >= total), flush=True)


sequences = np.load(DATA)
_, places, values = sequences.shape
net = {"name": "Transformer", "tokens": places, "dim": values, "width": 48, "depth": 3}
config = fs.TrainConfig(images=EXAMPLES, batch=32, lr=3e-3, dtype="fp32", compile=False)
model = fs.train(net, sequences, config=config, out="model", progress=show)

# A sequence is a function of the model, these settings, the seed and its number: the same whatever else is drawn.
sampler = fs.Sampler(model, solver="dpmpp-2m", steps=20, batch=100)
request = sampler.request(range(NEW), seed=0)
fs.draw(sampler, request, "samples", overwrite=True)

new = np.load("samples/samples.npz")["samples"]
print("samples/: samples.npz, grid.png, run.json")
print("spread of the data", sequences.std().round(2), "and of the new sequences", new.std().round(2))
steps, new_steps = np.diff(sequences, axis=1).std(), np.diff(new, axis=1).std()
print("from one place to the next", steps.round(2), "and", new_steps.round(2))
