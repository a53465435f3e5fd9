"""Pictures of what was measured; they need matplotlib."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastscore.files import atomic


def plot_loss(csv: Path, picture: Path) -> None:
    """Draw the loss of training over the images seen, from loss.csv.

    The axis is logarithmic; linear around 0 if there are losses of either sign, as implicit and sliced score matching
    have: their minimum is -E|s|^2, negative.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    curve = np.genfromtxt(csv, delimiter=",", names=True, ndmin=1)
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    axes.plot(curve["images"], curve["loss"], lw=1)
    if np.all(curve["loss"] > 0.0):
        axes.set_yscale("log")
    else:
        axes.set_yscale("symlog", linthresh=float(np.median(np.abs(curve["loss"]))) or 1.0)
    axes.set(xlabel="training images", ylabel="loss (mean of 50 steps)")
    axes.grid(True, which="both", alpha=0.3)
    with atomic(picture) as file:
        figure.savefig(file, dpi=100, format="png")
    plt.close(figure)
