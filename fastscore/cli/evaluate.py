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
@click.option("--floor/--no-floor", default=True, show_default=True, help="Also compare training with test images.")
def evaluate(samples: Path, data: str, classifier: str, limit: int | None, floor: bool) -> None:
    """Print the classifier-FID of SAMPLES (a run folder or an .npz file) against test images.

    The FID is taken in the feature space of a small classifier, so it compares only with other
    numbers of the same classifier; the floor is that of as many training images.
    """
    import numpy as np

    from fastscore.data.load import load
    from fastscore.report.metrics import features, frechet_distance
    from fastscore.training.classifier import load_classifier

    file = samples / "samples.npz" if samples.is_dir() else samples
    generated = load(str(file))
    if generated.x.dtype != np.uint8:
        raise ValueError(f"{file} holds points, not images")
    images = generated.x[:limit]
    net, names = load_classifier(classifier)
    test = load(data, "test").x
    if images.shape[1:] != test.shape[1:]:
        raise ValueError(f"{file} has images of shape {images.shape[1:]}, {data} of {test.shape[1:]}")
    activations, predicted = features(net, images)
    reference, _ = features(net, test)
    share = np.bincount(predicted, minlength=len(names)) / len(predicted)
    result = {
        "classifier-FID": round(frechet_distance(activations, reference), 4),
        "samples": len(images),
        "reference": f"{data} test, {len(test)} images",
        "classifier": classifier,
        "predicted classes": {n: round(float(p), 4) for n, p in zip(names, share, strict=True)},
    }
    if generated.labels is not None:
        result["label agreement"] = round(float((predicted == generated.labels[: len(predicted)]).mean()), 4)
    if floor:
        train = load(data, "train").x[: len(images)]
        result["floor (train against test)"] = round(frechet_distance(features(net, train)[0], reference), 4)
    click.echo(json.dumps(result, indent=1))
