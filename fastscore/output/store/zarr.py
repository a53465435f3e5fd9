"""Arrays as a Zarr group of format 2, which every version of Zarr reads: a few texts, and the bytes of the chunks.

Written without a library: chunks here are neither compressed nor filtered, and shards come in the chunks' order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pieces = Iterator[tuple[str, bytes]]
Arrays = Mapping[str, NDArray[Any]]


def group(about: Mapping[str, Any], first: Arrays, count: int) -> Pieces:
    """Give the texts of a group, by their paths: of arrays with ``count`` entries, a chunk as many as ``first`` has."""
    yield ".zgroup", _json({"zarr_format": 2})
    yield ".zattrs", _json(about)
    for name, x in first.items():
        text = {
            "zarr_format": 2,
            "shape": [count, *x.shape[1:]],
            "chunks": [max(1, size) for size in x.shape],
            "dtype": x.dtype.str,
            "compressor": None,
            "filters": None,
            "fill_value": None,
            "order": "C",
        }
        yield f"{name}/.zarray", _json(text)


def chunks(number: int, arrays: Arrays, size: int) -> Pieces:
    """Give the chunks of arrays with ``size`` entries or, at the end, fewer, by their paths."""
    for name, x in arrays.items():
        if x.nbytes:
            missing = np.zeros((size - len(x), *x.shape[1:]), x.dtype)
            yield f"{name}/{'.'.join([str(number), *'0' * (x.ndim - 1)])}", x.tobytes() + missing.tobytes()


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=1).encode()
