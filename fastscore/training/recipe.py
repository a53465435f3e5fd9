"""What a training run takes if nothing is said: a network, a schedule and a parametrization that suit the data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastscore.data.load import Dataset
from fastscore.errors import unknown
from fastscore.model.nets.embedding import EMBEDDINGS
from fastscore.process.continuous import TutorialVE
from fastscore.process.parametrization import Parametrization
from fastscore.process.schedule import Schedule

NETS = {3: ("unet", "scorenet"), 1: ("mlp",), 2: ("transformer",)}  # by the axes of a sample: image, point, sequence
FASTEST = 1000.0  # the highest frequency of a sinusoidal label over the whole range of times, as in Ho et al. 2020
WIDEST = 4.0  # range of labels up to which Fourier features of frequency one tell neighbours apart and no more


def parametrize(
    prediction: str,
    sigma_data: float,
    *,
    net: str = "auto",
    schedule: Schedule,
    label: str | None = None,
    scaling: str | None = None,
) -> Parametrization:
    """Return how a network that is to be trained is called and read.

    Input and output are of unit variance and the label is bounded, whatever is predicted on whatever schedule, so that
    all of them train alike. ScoreNet on its own SDE scales its output itself and reads the time itself.

    Args:
        prediction, sigma_data: see Parametrization.
        net: one of NETS.
        label: "tanh" if left out, or where scaling is "none" "t/T", and "log_sigma/4" for edm.
        scaling: "unit" if left out, "none" for ScoreNet on its own SDE.
    """
    if scaling is None:
        scaling = "none" if net == "scorenet" and divides(prediction, schedule) else "unit"
    if label is None:
        label = "tanh" if scaling == "unit" else "log_sigma/4" if prediction == "edm" else "t/T"
    return Parametrization(prediction, label, sigma_data, scaling)


def divides(prediction: str, schedule: Schedule) -> bool:
    """Return whether ScoreNet divides its output by sigma(t), as its tutorial does for its own SDE."""
    return prediction == "score" and isinstance(schedule, TutorialVE)


def describe(
    shape: tuple[int, ...],
    schedule: Schedule,
    parametrization: Parametrization,
    *,
    net: str = "auto",
    classes: int = 0,
    width: int | None = None,
    mult: tuple[int, ...] = (1, 2),
    blocks: tuple[int, ...] = (2, 1),
    patch: int = 2,
    ordered: bool = True,
    embedding: str = "fourier",
) -> dict[str, Any]:
    """Return the description of a network for samples of a shape, for model.nets.build.

    The frequencies of its time features are those that the range of labels on the schedule wants, whichever label it
    is: a table's index runs to 999, EDM's sigma to 80.

    Raises:
        ValueError: a network or an option that does not fit the shape; the message says which does.
    """
    choices = NETS.get(len(shape), ())
    net = net if net != "auto" or not choices else choices[0]
    if net not in choices:
        raise ValueError(f"--net {net} does not fit samples of shape {shape}; use --net {' or '.join(choices)}")
    if net != "transformer" and not ordered:
        raise ValueError(f"--unordered belongs to --net transformer; leave it out with --net {net}")
    if embedding not in EMBEDDINGS:
        raise unknown("embedding", embedding, EMBEDDINGS)
    scale = label_scale(embedding, schedule, parametrization)
    time = {} if (embedding, scale) == ("fourier", 1.0) else {"embedding": embedding, "scale": scale}
    if net == "transformer":
        sizes = {"tokens": shape[0], "dim": shape[1], "width": width or 128}
        return {"name": "Transformer", **sizes, "ordered": ordered, "classes": classes, **time}
    if net == "mlp":
        return {"name": "MLP", "dim": shape[0], "width": width or 128, "classes": classes, **time}
    if net == "scorenet":
        if shape[1:] != (28, 28):
            raise ValueError(f"--net scorenet is made for 28x28 images; these are {shape[1]}x{shape[2]}")
        own = divides(parametrization.prediction, schedule) and parametrization.scaling == "none"
        time["scale"] = 30.0 * scale if embedding == "fourier" else scale
        return {"name": "ScoreNet", "channels": shape[0], "base": schedule.base if own else None, **time}  # pyright: ignore[reportAttributeAccessIssue]
    return {
        "name": "UNet",
        "channels": shape[0],
        "size": shape[1] if shape[1] == shape[2] else list(shape[1:]),
        "width": width or 64,
        "mult": list(mult),
        "blocks": list(blocks),
        "patch": patch,
        "classes": classes,
        **time,
    }


def label_scale(embedding: str, schedule: Schedule, parametrization: Parametrization) -> float:
    """Return the scale of time features that suits the labels that a schedule has."""
    low, high = label_range(schedule, parametrization, schedule.t_end)
    span = max(float(f"{abs(high - low):.3g}"), 1e-3)
    if embedding == "fourier":
        return min(1.0, WIDEST / span)
    return (FASTEST if embedding == "sinusoidal" else WIDEST) / span


def label_range(schedule: Schedule, parametrization: Parametrization, t_end: float) -> tuple[float, float]:
    """Return the labels at ``t_end`` and T.

    Raises:
        ValueError: a label that is infinite at pure noise.
    """
    with np.errstate(divide="ignore"):
        low, high = parametrization.c_noise(schedule, np.array([t_end, schedule.T])).tolist()
    if not np.isfinite(high):
        raise ValueError(
            f"label {parametrization.label!r} is infinite at T of {type(schedule).__name__}, which is pure noise; "
            "take label 'tanh', which is the same bounded, or 't'"
        )
    return low, high


def measured_std(data: Dataset) -> float:
    """Return the root mean square deviation of the first 10,000 examples as the network sees them, to two digits."""
    x = data.network_range(np.arange(min(len(data.x), 10_000)))
    return float(f"{x.std():.2g}") or 1.0  # one point alone has no scale


def farthest(data: Dataset) -> float:
    """Return the largest distance of two of the first 1,000 examples: the sigma_max of an SMLD table.

    Source: Song & Ermon 2020, technique 1. With less, x_T is not the prior that a sampler starts from.
    """
    x = data.network_range(np.arange(min(len(data.x), 1000))).reshape(min(len(data.x), 1000), -1).astype(np.float64)
    squares = np.square(x).sum(1)
    distance = float(np.sqrt(np.max(squares[:, None] + squares - 2.0 * x @ x.T)))
    return float(f"{distance:.2g}")


def noise_levels(
    data: Dataset, sigma_data: float, mean: float | None = None, std: float | None = None
) -> tuple[float, float]:
    """Return mean and standard deviation of ln sigma of lognormal times: what is given, or what suits a data set.

    EDM's are ln(sigma_data) - 0.5 and 1.2. What large and simple images are (which class, on which side bright) is
    decided at the noise of their largest principal component, which may be many sigma_data: there the levels reach
    further up, such that it lies one standard deviation above the mean, and two below it end where EDM's do.

    Source: Karras et al. 2022, table 1; Biroli et al. 2024, eq. 8 (speciation, where sigma^2 is the largest eigenvalue
    of the data's covariance).
    """
    usual = math.log(sigma_data) - 0.5, 1.2
    if mean is not None or std is not None:
        return (usual[0] if mean is None else mean), (usual[1] if std is None else std)
    low = usual[0] - 2.0 * usual[1]
    wider = float(f"{(math.log(largest_component(data)) - low) / 3.0:.2g}")
    return (low + 2.0 * wider, wider) if wider > usual[1] else usual


def largest_component(data: Dataset) -> float:
    """Return the standard deviation along the first principal component of the first examples, to two digits."""
    count = max(2, min(len(data.x), 1000, (1 << 25) // math.prod(data.shape)))
    x = data.network_range(np.arange(min(len(data.x), count))).reshape(-1, math.prod(data.shape)).astype(np.float64)
    x -= x.mean(0)
    square = x @ x.T if len(x) < x.shape[1] else x.T @ x  # the larger eigenvalues of both are the same
    return float(f"{math.sqrt(max(0.0, float(np.linalg.eigvalsh(square)[-1])) / len(x)):.2g}") or 1.0
