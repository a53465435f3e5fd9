"""NVlabs' EDM and EDM2 networks, inside their preconditioning, as score models."""

from __future__ import annotations

from typing import Any

import torch

from fastscore.adapters.wrapped import wrap
from fastscore.model.score import ScoreModel
from fastscore.process.continuous import EDM
from fastscore.process.discrete import DiscreteVE
from fastscore.process.parametrization import Parametrization
from fastscore.process.schedule import Schedule

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0  # of edm_sampler, which both codes call with them


def from_edm(
    net: Any,
    shape: tuple[int, ...] | None = None,
    *,
    call: str | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    **fields: Any,
) -> ScoreModel:
    """Return the score model of a preconditioned network D(x, sigma, class_labels) of EDM or EDM2.

    It reads ``img_channels``, ``img_resolution``, ``label_dim``, ``sigma_min`` and ``sigma_max``: those of VPPrecond,
    VEPrecond, iDDPMPrecond, EDMPrecond and EDM2's Precond. Labels reach it one-hot; the null label K = label_dim is the
    zero vector, which is what None means there. A network that was not trained on that (label dropout) has
    ``null=None``: runs must then name a class. Augmentation labels are left out, as at sampling there.

    A network that rounds sigma to a table (iDDPMPrecond) gets that table as its schedule, whose times are indices, so
    that default grids keep to levels that it was trained on.

    EDM2 guides by a second network: ``Guidance(weight, model=from_edm(gnet))``.

    Args:
        net: the network; its weights stay where they are.
        shape: of one sample, if the network does not say it.
        call: how it is called, if other than "x, sigma, one_hot(labels, K)"; see ``wrap``.
        sigma_min, sigma_max: range of the noise; left out, as edm_sampler has it: 0.002 .. 80 within the network's own.
        fields: of ScoreModel.

    Raises:
        ValueError: a network without these attributes.

    Source: Karras et al. 2022, table 1; 2024.
    """
    classes = int(getattr(net, "label_dim", 0) or 0)
    if shape is None:
        channels, size = (getattr(net, name, None) for name in ("img_channels", "img_resolution"))
        if not isinstance(channels, int) or not isinstance(size, int):
            raise ValueError(f"from_edm: a {type(net).__name__} has no img_channels and img_resolution; give shape=")
        shape = (channels, size, size)
    low = max(SIGMA_MIN, float(getattr(net, "sigma_min", 0.0))) if sigma_min is None else sigma_min
    high = min(SIGMA_MAX, float(getattr(net, "sigma_max", SIGMA_MAX))) if sigma_max is None else sigma_max
    schedule: Schedule = EDM(low, high)
    levels = getattr(net, "u", None)
    if isinstance(levels, torch.Tensor) and levels.ndim == 1:
        schedule = DiscreteVE(tuple(sorted({level for level in levels.tolist() if low <= level <= high})))
    call = call or ("x, sigma" + (f", one_hot(labels, {classes})" if classes else ""))
    fields = {"classes": classes, "null": classes or None, **fields}
    return ScoreModel(wrap(net, call), shape, schedule, Parametrization("x0", "sigma"), **fields)
