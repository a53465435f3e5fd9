"""Recorded normals in place of a library's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from bench.peers import Draw


@contextmanager
def normals(draw: Draw | None) -> Iterator[None]:
    """Let torch.randn and torch.randn_like return what ``draw`` does; None changes nothing."""
    if draw is None:
        yield
        return

    def randn(*size: Any, **options: Any) -> Tensor:
        shape = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
        return draw(torch.empty(shape))

    def randn_like(x: Tensor, **options: Any) -> Tensor:
        return draw(x)

    with patch.object(torch, "randn", randn), patch.object(torch, "randn_like", randn_like):
        yield
