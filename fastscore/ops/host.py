"""Copies from a device to the host that nothing waits for, and work on one stream that waits for another."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def pinned(x: Tensor) -> tuple[Tensor, torch.Event]:
    """Return a copy of a CUDA tensor in pinned memory, on its way behind the work of the device's current stream.

    The event is when it has arrived; until then it holds anything.
    """
    copy = torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
    return copy, torch.cuda.current_stream(x.device).record_event()


def behind(device: torch.device) -> Callable[[], None]:
    """Return what lets a later current stream of a device, of whatever thread, wait for what is on this one now."""
    if device.type != "cuda":
        return lambda: None
    event = torch.cuda.current_stream(device).record_event()
    return lambda: torch.cuda.current_stream(device).wait_event(event)


def wait(device: torch.device) -> None:
    """Wait for what the current stream of a device has to do."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
