"""Learns what images look like, and draws new ones: python main.py. Stopped and run again, it goes on."""

import fastscore as fs
from fastscore.data.load import load

DATA = "data"  # yours: a folder of images of one size, or one with a folder for each class, or an .npz of them
EXAMPLES = 20_000  # to look at while training; a million or more for photographs, and a width of 64 and above
NEW = 64


def show(seen: int, total: int, figures: dict[str, float]) -> None:
    """Print how far training is."""
    print(f"\r{seen:,} of {total:,} images, loss {figures['loss']:.3f}", end="\n" * (seen >= total), flush=True)


images = load(DATA)
channels, height, width = images.shape
unet = {"width": 32, "mult": [1, 2], "blocks": [1, 1], "patch": 2, "classes": len(images.class_names)}
net = {"name": "UNet", "channels": channels, "size": [height, width], **unet}
config = fs.TrainConfig(images=EXAMPLES, batch=64, lr=2e-3, dtype="fp32", compile=False)
model = fs.train(net, images, config=config, out="model", progress=show)

# An image is a function of the model, these settings, the seed and its number: the same whatever else is drawn.
sampler = fs.Sampler(model, solver="dpmpp-2m", steps=20, batch=32)
request = sampler.request(range(NEW), seed=0, labels="random" if model.classes else None)
fs.draw(sampler, request, "samples", overwrite=True, png=True)
print("samples/: png/, samples.npz, grid.png, run.json")
