"""Langevin chains on disk, as a run of samples is."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fastscore.data.limits import fits_memory
from fastscore.files import write_text
from fastscore.ops.quantize import quantize_ref
from fastscore.output.commit import Stage
from fastscore.output.images import write_npz
from fastscore.output.pictures import contact_or_density, put_sheet
from fastscore.output.record import FILES, RECORD, Written
from fastscore.output.room import SPARE
from fastscore.output.run import finish
from fastscore.output.store.gather import SAMPLES


def reserve_chains(stage: Stage, num: int, kept: int, shape: Sequence[int]) -> None:
    """Make sure that n chains of ``kept`` states each have room, in memory and on disk, before they run.

    Raises:
        ValueError: too much for the memory.
        OSError: too much for the disk.
    """
    state = num * math.prod(shape) * 4
    fits_memory(state * (kept + 2), f"{num} chains of {kept} kept states", "keep fewer (--thin), or run fewer (-n)")
    stage.reserve(last_states=state, states=state * kept, rest=16 * num + 2 * SPARE)


def write_chains(
    stage: Stage, x: Tensor, states: Tensor, ids: Sequence[int], run: Mapping[str, Any], **arrays: Any
) -> None:
    """Write Langevin chains to a folder, as ``draw`` writes samples, and put them in place.

        samples.npz  samples: the last states, as ``draw`` has samples; states: float32 [n, kept, *shape]; ids: int64
                     [n]; the further arrays
        grid.png     the last states of 100 chains as images, or the density of all kept points, of the last ones if
                     none were kept
        run.json     what ``run`` holds, versions, threads

    Args:
        stage: of the folder, from output.commit.begin.
        x: last state of each chain, [n, *shape].
        states: kept states of each chain in order, [n, kept, *shape].
        ids: of the chains.
        run: settings, as plain values.

    Raises:
        OSError: the folder cannot be written.
    """
    samples, kept = (quantize_ref(x) if x.ndim == 4 else x.float()).cpu().numpy(), states.float().cpu().numpy()
    shown = samples if x.ndim == 4 or not kept.size else kept.reshape(-1, *x.shape[1:])
    arrays = {"samples": samples, "states": kept, "ids": np.asarray(ids, np.int64), **arrays}
    stage.keep(lambda place: _rescued(place, arrays, run))
    stage.spend(1 << 62)
    write_npz(stage.new / SAMPLES, **arrays)
    put_sheet(stage, contact_or_density(shown))
    finish(stage, run, Written(FILES))


def _rescued(place: Path, arrays: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """Write chains that could not be put in place beside the folder, if there is room; say what is where."""
    try:
        write_npz(place / SAMPLES, **arrays)
        write_text(place / RECORD, json.dumps(run, indent=1) + "\n")
    except OSError:
        return "nowhere: there is no room"
    return f"{place / SAMPLES}; np.load reads it"
