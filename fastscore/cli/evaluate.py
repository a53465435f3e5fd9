"""fastscore evaluate: judge a folder of samples with a classifier."""

from __future__ import annotations

import json
from pathlib import Path

import click

from fastscore.cli.types import Count


@click.command()
@click.argument("samples", type=click.Path(path_type=Path))
@click.option(
    "--data", default="fashion-mnist", show_default=True, help="Reference images; see `fastscore train --help`."
)
@click.option("--classifier", default="fashion-classifier", show_default=True, help="Bundled name or folder.")
@click.option("--limit", type=Count(2), help="Use the first N samples.")
@click.option("--floor/--no-floor", default=True, show_default=True, help="Also compare real images with real ones.")
def evaluate(samples: Path, data: str, classifier: str, limit: int | None, floor: bool) -> None:
    """Print the classifier-FID of SAMPLES (a run folder or an .npz file) against test images.

    The FID is taken in the feature space of a small classifier, so it compares only with other
    numbers of the same classifier; the floor is that of as many training images, or, where the data have no test
    images of their own, that of one half of them against the other.
    """
    import numpy as np

    from fastscore.data.load import load
    from fastscore.output.commit import settle
    from fastscore.report.metrics import features, frechet_distance
    from fastscore.training.classifier import load_classifier

    if samples.is_dir():
        settle(samples)
    file = samples / "samples.npz" if samples.is_dir() else samples
    generated = load(str(file))
    if generated.x.dtype != np.uint8:
        raise ValueError(f"{file} holds no images of 8 bits, which is what the classifier judges")
    images = generated.x[:limit]
    net, names = load_classifier(classifier)
    test = load(data, "test").x
    if test.dtype != np.uint8:
        raise ValueError(f"{data} holds no images of 8 bits, which is what the classifier judges")
    if images.shape[1:] != test.shape[1:]:
        raise ValueError(f"{file} has images of shape {images.shape[1:]}, {data} of {test.shape[1:]}")
    if np.array_equal(images, test[: len(images)]):
        raise ValueError(
            f"{file} and {data} hold the same images; compare samples with data that they were not made of"
        )
    activations, predicted = features(net, images)
    reference, _ = features(net, test)
    share = np.bincount(predicted, minlength=len(names)) / len(predicted)
    result = {
        "classifier-FID": round(frechet_distance(activations, reference), 4),
        "samples": len(images),
        "reference": f"{data}, {len(test)} images",
        "classifier": classifier,
        "predicted classes": {n: round(float(p), 4) for n, p in zip(names, share, strict=True)},
    }
    if generated.labels is not None:
        result["label agreement"] = round(float((predicted == generated.labels[: len(predicted)]).mean()), 4)
    if floor:
        train = load(data, "train").x
        if not np.array_equal(train, test):
            kind, one, other = "train against test", features(net, train[: len(images)])[0], reference
        else:
            # One set only, whose files may lie in any order: by class, say.
            one, other = np.array_split(reference[np.random.default_rng(0).permutation(len(reference))], 2)
            kind = f"{len(one)} against {len(other)} others"
        if min(len(one), len(other)) > 1:
            result[f"floor ({kind})"] = round(frechet_distance(one, other), 4)
        else:
            result["floor"] = f"none: {data} has {len(test)} images and no test images of its own"
    click.echo(json.dumps(result, indent=1))
