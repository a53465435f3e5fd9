"""Three acts with the bundled network: images, guided and not; a filled-in half; what the model thinks of images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastscore.cli.demo.act import SEED, Act, Say, png, sheet
from fastscore.engine.trajectory import trajectory
from fastscore.flow import ProbabilityFlow, dequantize
from fastscore.guidance.mixture import Guidance
from fastscore.model.conditions import Known
from fastscore.model.folder import load_model
from fastscore.ops.noise import NoiseKey
from fastscore.ops.quantize import quantize_ref
from fastscore.output.images import contact_sheet
from fastscore.report.metrics import features
from fastscore.report.page import Frames, Picture, Section, Table
from fastscore.sampler import Sampler
from fastscore.solvers import DDPM, Dopri5, RePaint
from fastscore.training.classifier import load_classifier

STEPS, WEIGHT, BATCH, TOLERANCE = 10, 2.0, 10, 1e-2
DRAWN = """
The same with images: a network of 2.5 million weights, which comes with this package and has learned the score of
28 x 28 pictures of clothes. Every column asks for one class. Guidance exaggerates what the class changes in the score:
each image costs two evaluations a step in place of one, and looks more like its class.
"""
FILLED = """
No other network is needed to fill in what is missing. At every step the known half is put in with the noise that it
would have there, and the unknown half follows; going back and forth a few times (RePaint) lets both agree. Each image
gets several halves: the answer is a distribution, and these are samples of it.
"""
LIKELY = """
The probability-flow ODE runs both ways. From an image to its noise, it gives the probability density that the model
has there, here as bits a pixel: how long the image would be, written in the model's own code. A picture that looks
like its data is short; the same one upside down is longer, and its pixels in random order are no clothes at all.
"""


def drawn(quick: bool, say: Say, show: bool) -> tuple[Act, Tensor, list[int]]:
    """Draw images of all classes, guided and not; return the guided ones too, [n, 1, 28, 28], with their labels."""
    model, each = load_model("fashion"), 1 if quick else 4
    labels = [k for k in range(10) for _ in range(each)]
    net, names = load_classifier("fashion-classifier")
    found, sheets, shares = {}, {}, {}
    for name, guidance in (("not guided", None), ("guided", Guidance(WEIGHT))):
        sampler = Sampler(model, steps=STEPS, guidance=guidance, batch=BATCH, network="own")
        found[name] = x = sampler.run(range(len(labels)), SEED, labels=labels, progress=show)
        images = quantize_ref(x).numpy()
        shares[name] = float((features(net, images)[1] == np.array(labels)).mean())
        by_class = images.reshape(10, each, *images.shape[1:]).swapaxes(0, 1).reshape(images.shape)
        sheets[name] = sheet(by_class, 10)
        cost = STEPS * (1 if guidance is None else 2)
        say(f"{len(labels)} images, {name}, {cost} evaluations each: a classifier sees the class in {shares[name]:.0%}")
    parts = [
        _frames(model),
        *(
            Picture(sheets[name], f"{len(labels)} images, {name}; one column a class: {', '.join(names)}.")
            for name in sheets
        ),
        Table(
            ["images", "evaluations each", "share whose class a classifier sees"],
            [["not guided", STEPS, shares["not guided"]], [f"guided, weight {WEIGHT:g}", 2 * STEPS, shares["guided"]]],
            "From the same noise, by DPM-Solver++ 2M.",
        ),
    ]
    figures = {"images": len(labels), "class_seen": shares}
    return Act(Section("Images: a trained network", DRAWN, parts), figures), found["guided"], labels


def _frames(model: Any) -> Frames:
    """Return the way of a few images, and of what is expected of each, as frames."""
    labels = [9, 2, 3, 8, 7, 1]
    sampler = Sampler(model, steps=STEPS, guidance=Guidance(WEIGHT), batch=len(labels), network="own")
    path = trajectory(sampler, range(len(labels)), SEED, labels=labels)
    assert path.x0 is not None
    pngs, names = [], []
    for k in range(len(path.x0) + 1):
        sigma = float(path.times[k])
        x = path.states[k] / max(1.0, sigma)  # as bright at every noise level
        x0 = path.x0[k] if k < len(path.x0) else path.states[-1]
        pngs.append(png(contact_sheet(quantize_ref(torch.cat([x, x0])).numpy(), columns=len(labels), scale=3)))
        names.append(f"noise {sigma:.3g}" if k < len(path.x0) else "the samples")
    text = "Images on their way (above), and the clean image that the network expects of each (below)."
    return Frames(pngs, names, text)


def filled(quick: bool, say: Say, show: bool, images: Tensor, labels: list[int]) -> Act:
    """Hide the right half of some images, and let the model fill it in."""
    per, count = (2, 2) if quick else (4, 3)
    at = [labels.index(k) for k in (9, 0, 8)[:count]]
    mask = torch.ones(1, 28, 28, dtype=torch.bool)
    mask[:, :, 14:] = False
    y = images[at]
    sampler = Sampler(
        load_model("fashion"), solver=RePaint(DDPM(), 4, 2), steps=16 if quick else 20, batch=per * count, network="own"
    )
    known = Known(y.repeat_interleave(per, 0), mask)
    told = [labels[k] for k in at for _ in range(per)]
    x = sampler.run(range(per * count), SEED, labels=told, known=known, progress=show)
    grey, halves = quantize_ref(torch.where(mask, y, 0.0)).numpy(), quantize_ref(x).numpy()
    originals = quantize_ref(y).numpy()
    off = int(np.abs(halves[:, :, :14].astype(int) - originals.repeat(per, 0)[:, :, :14]).max())
    assert sampler.plan is not None
    say(
        f"{per} right halves for each of {count} images, {sampler.plan.nfe} evaluations each: known halves differ "
        f"by {off} of 255 grey levels"
    )
    lines = [
        np.concatenate([originals[k : k + 1], grey[k : k + 1], halves[k * per : (k + 1) * per]]) for k in range(count)
    ]
    text = f"A line an image: the original, what is known of it, and {per} ways to go on."
    parts = [Picture(sheet(np.concatenate(lines), per + 2), text)]
    figures = {"results": per * count, "evaluations": sampler.plan.nfe, "known_half_off_by": off}
    return Act(Section("Inpainting: half an image is known", FILLED, parts), figures)


def likely(quick: bool, say: Say, show: bool, images: Tensor, labels: list[int]) -> Act:
    """Return bits a pixel of images, of the same upside down, and of their pixels in random order."""
    at = [labels.index(k) for k in ((9, 1) if quick else (9, 1, 8))]
    key, step = NoiseKey.of(SEED, range(len(at))), 2.0 / 255.0
    levels = quantize_ref(images[at]).permute(0, 3, 1, 2).to(torch.int32)
    x, told = dequantize(levels, key, step, -1.0 - 0.5 * step), [labels[k] for k in at]
    order = torch.from_numpy(np.random.default_rng(SEED).permutation(x[0].numel()))
    variants = {
        "as they are": x,
        "upside down": x.flip(2),
        "pixels in random order": x.flatten(1)[:, order].view_as(x),
    }
    flow = ProbabilityFlow(load_model("fashion"), solver=Dopri5(TOLERANCE, TOLERANCE), batch=3 * len(at), network="own")
    together = torch.cat(list(variants.values()))
    result = flow.log_likelihood(together, labels=told * 3, progress=show)
    bits = result.bits_per_dim(step).view(3, len(at)).mean(1).tolist()
    figures = dict(zip(variants, bits, strict=True))
    say(", ".join(f"{name} {value:.2f}" for name, value in figures.items()) + " bits a pixel")
    pictures = quantize_ref(together).numpy()
    rows = [[name, value] for name, value in figures.items()]
    parts = [
        Picture(sheet(pictures, len(at)), "What was judged: images as they are, upside down, and shuffled."),
        Table(
            ["images", "bits a pixel"],
            rows,
            f"Means over {len(at)} images, {float(result.cost.nfe.double().mean()):.0f} evaluations each; 8 bits a "
            "pixel is what a file without compression takes.",
        ),
    ]
    return Act(Section("Likelihood: what the model thinks of an image", LIKELY, parts), {"bits_a_pixel": figures})
