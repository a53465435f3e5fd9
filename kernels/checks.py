"""Argument checks that every launcher shares."""

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def require(
    op: str, device: torch.device, **expected: tuple[Tensor | None, tuple[int, ...], tuple[torch.dtype, ...]]
) -> None:
    """Check tensors given as name=(tensor, shape, dtypes); None passes.

    Raises:
        ValueError: a tensor has another shape, dtype or device, or is not contiguous.
    """
    for name, (tensor, shape, dtypes) in expected.items():
        if tensor is None:
            continue
        if tensor.shape != shape or tensor.dtype not in dtypes or tensor.device != device:
            wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise ValueError(
                f"{op}: {name} is {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} on {tensor.device}; "
                f"expected {wanted} {list(shape)} on {device}"
            )
        if not tensor.is_contiguous():
            raise ValueError(f"{op}: {name} has strides {tensor.stride()}; expected contiguous, call .contiguous()")


def require_rows(op: str, device: torch.device, n: int, table: Tensor, idx: Tensor, width: int) -> None:
    """Check a table of rows and the row numbers of n samples, which may be one broadcast number."""
    require(op, device, table=(table, (table.shape[0], width), (torch.float32,)))
    if idx.shape != (n,) or idx.dtype not in (torch.int32, torch.int64) or idx.device != device:
        raise ValueError(
            f"{op}: idx is {idx.dtype} {list(idx.shape)} on {idx.device}; expected int32 or int64 [{n}] on {device}"
        )
