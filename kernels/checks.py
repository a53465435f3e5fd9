"""Argument checks that every launcher shares."""

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_INT64 = (torch.int64,)
_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


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
            types = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise ValueError(
                f"{op}: {name} is {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} on {tensor.device}; "
                f"expected {types} {list(shape)} on {device}"
            )
        if not tensor.is_contiguous():
            raise ValueError(f"{op}: {name} has strides {tensor.stride()}; expected contiguous, call .contiguous()")


def channels_last(F: Tensor) -> int:
    """Return how many channels of an output [N, C, ...] lie last in memory; 1 if it lies as the state does."""
    last = F.ndim in _LAST and not F.is_contiguous() and F.is_contiguous(memory_format=_LAST[F.ndim])
    return F.shape[1] if last else 1


def require_output(
    op: str, name: str, F: Tensor | None, x: Tensor, dtypes: tuple[torch.dtype, ...], most: int = 1 << 62
) -> int:
    """Check a network output for the state x [N, D]; return its channels_last. None passes.

    It is [N, D], or [N, C, H, W] or [N, C, L, H, W] as the network left it, at most ``most`` channels last.

    Raises:
        ValueError: another shape, dtype, device or layout.
    """
    if F is None or (F.shape == x.shape and F.is_contiguous() and F.dtype in dtypes and F.device == x.device):
        return 1  # as most outputs are, told in a microsecond less
    channels = channels_last(F)
    if channels > most:
        raise ValueError(f"{op}: {name} has {channels} channels that lie last; at most {most}, call .contiguous()")
    image = F.ndim in _LAST and len(F) == len(x) and F.shape[1:].numel() == x.shape[1]
    flat = F.movedim(1, -1) if channels > 1 else F
    require(op, x.device, **{name: (flat, flat.shape if image else x.shape, dtypes)})
    return channels


def require_key(op: str, device: torch.device, n: int, key: object) -> int:
    """Check the key of the noise of n samples; return the stride of its seeds.

    It is 0 where one seed serves all samples ([1], or broadcast) and 1 where each has its own.

    Raises:
        ValueError: a seed or an id of another shape, dtype or device, or not contiguous.
    """
    seed, stride = key.seed, 0
    if seed.shape != (1,):
        stride = 1
        if seed.shape == (n,) and n and not seed.stride(0):
            seed, stride = seed[:1], 0
    require(op, device, seed=(seed, (n,) if stride else (1,), _INT64), ids=(key.ids, (n,), _INT64))
    return stride


def require_rows(op: str, device: torch.device, n: int, table: Tensor, idx: Tensor, width: int) -> None:
    """Check a table of rows and the row numbers of n samples, which may be one broadcast number."""
    require(op, device, table=(table, (table.shape[0], width), (torch.float32,)))
    if idx.shape != (n,) or idx.dtype not in (torch.int32, torch.int64) or idx.device != device:
        raise ValueError(
            f"{op}: idx is {idx.dtype} {list(idx.shape)} on {idx.device}; expected int32 or int64 [{n}] on {device}"
        )
