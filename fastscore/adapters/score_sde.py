"""Networks of Song et al.'s score_sde_pytorch as score models, and the weights in its checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fastscore.adapters.weights import saved
from fastscore.adapters.wrapped import wrap
from fastscore.data.affine import Affine
from fastscore.data.limits import fits_memory, regular_file
from fastscore.errors import short
from fastscore.model.score import ScoreModel
from fastscore.process.beta import LinearBeta
from fastscore.process.continuous import VE, VP, SubVP
from fastscore.process.discrete import DiscreteVE, DiscreteVP
from fastscore.process.parametrization import Parametrization
from fastscore.process.schedule import Schedule


def from_score_sde(
    net: Callable[..., Any],
    sde: Any,
    shape: tuple[int, ...],
    *,
    continuous: bool,
    centered: bool | None = None,
    score_fn: bool = False,
    **fields: Any,
) -> ScoreModel:
    r"""Return the score model of a network net(x, labels) that was trained on one of their SDEs.

        ==========  ================  =================  ==================================================
        SDE         continuous        label              output
        ==========  ================  =================  ==================================================
        VP, sub-VP  yes               999 t              -sigma(t) score
        VP          no                index, t (N - 1)   -sigma_i score, sigma_i of the table of betas
        VE          yes               sigma(t)           score
        VE          no                N - 1 - index      score
        ==========  ================  =================  ==================================================

    A network trained on a table keeps it: times are its indices, and default grids stay on them. Their own sampler
    takes such a network to times in between and rounds the table down; that is not repeated.

    Samples are in [-1, 1]: a network trained on images in [0, 1] gets those, behind a ``transform``.

    Args:
        net: the network, DataParallel or not; or with ``score_fn`` what their ``get_score_fn`` returns, s(x, t).
        sde: a VPSDE, subVPSDE or VESDE; what is read of it is its class's name, beta_0, beta_1 or sigma_min, sigma_max,
            and N.
        shape: of one sample.
        continuous: ``config.training.continuous``.
        centered: ``config.data.centered``, whether its images were in [-1, 1]; left out, as in every published config:
            in [0, 1] for VE only.
        fields: of ScoreModel.

    Raises:
        ValueError: another SDE, or a sub-VP SDE that is not continuous.

    Source: score_sde_pytorch, models/utils.py and sde_lib.py; Song et al. 2021, appendix C.
    """
    names = {c.__name__.lower() for c in type(sde).__mro__}
    kind = next((k for k in ("subvp", "vp", "ve") if f"{k}sde" in names), None)
    wanted = ("sigma_min", "sigma_max", "N") if kind == "ve" else ("beta_0", "beta_1", "N")
    if kind is None or not all(hasattr(sde, name) for name in wanted):
        raise ValueError(f"sde is a {type(sde).__name__}; it must be a VPSDE, subVPSDE or VESDE of score_sde")
    if kind == "subvp" and not continuous:
        raise ValueError("continuous = False: score_sde has no table for its subVPSDE, whose networks are continuous")
    low, high, n = float(getattr(sde, wanted[0])), float(getattr(sde, wanted[1])), int(sde.N)
    call, prediction, label = "x, t", "score" if kind == "ve" else "eps", "t"
    if continuous or score_fn:
        label = "sigma" if kind == "ve" else "999t"
        schedule: Schedule = VE(low, high) if kind == "ve" else (VP if kind == "vp" else SubVP)(LinearBeta(low, high))
    elif kind == "vp":
        schedule = DiscreteVP(tuple(np.linspace(low / n, high / n, n)))
    else:
        schedule = DiscreteVE(tuple(np.exp(np.linspace(math.log(low), math.log(high), n))))
        call = f"x, round({n - 1} - t)"
    if score_fn:
        prediction, label = "score", "t"
    centered = kind != "ve" if centered is None else centered
    if not centered:
        fields["transform"] = Affine((-1.0,) * shape[-1], (2.0,) * shape[-1])
    return ScoreModel(wrap(net, call), shape, schedule, Parametrization(prediction, label), **fields)


def read_score_sde_checkpoint(path: Path | str, ema: bool = True) -> dict[str, Tensor]:
    """Return the weights in a checkpoint, as ``load_state_dict`` of the network itself takes them.

    Their average is a list without names: trainable parameters in order. What is not trained has none, the Fourier
    frequencies (a ``W`` of one axis) and the buffer ``sigmas``; these come from the model.

    Args:
        path: of ``{"model": .., "ema": {"shadow_params": [..]}, ..}``. It is read with weights_only, so that nothing of
            it is executed.
        ema: take the averaged weights, as their samplers do.

    Raises:
        ValueError: no such file, one that is no such checkpoint, or an average that does not fit the model.
    """
    path = regular_file(Path(path))
    fits_memory(path.stat().st_size, path, "read it on a larger machine")
    try:
        content = saved(path)
        state = {str(k).removeprefix("module."): v.detach() for k, v in content["model"].items()}
        averages = list(content["ema"]["shadow_params"]) if ema else []
    except Exception as error:  # see saved
        raise ValueError(f"{path} is not a readable checkpoint of score_sde: {short(error, 200)}") from None
    if not ema:
        return state
    trained = [name for name in state if not _fixed(name, state)]
    if [tuple(v.shape) for v in averages] != [tuple(state[name].shape) for name in trained]:
        raise ValueError(
            f"{path}: the average has {len(averages)} tensors and the model {len(trained)} to train, or other shapes; "
            "read_score_sde_checkpoint(path, ema=False) returns the weights as they are"
        )
    return state | {name: v.detach() for name, v in zip(trained, averages, strict=True)}


def _fixed(name: str, state: Mapping[str, Tensor]) -> bool:
    """Return whether a tensor of the model is not trained."""
    last = name.split(".")[-1]
    return last == "sigmas" or (last == "W" and state[name].ndim == 1)
