"""A short measured choice of the micro-batch and the number of threads."""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from fastscore.execution import Execution
from fastscore.model.conditions import condition_of
from fastscore.model.score import ScoreModel, evaluate
from fastscore.network import cache, package
from fastscore.network.arithmetic import accelerator
from fastscore.network.surroundings import evaluating, undisturbed
from fastscore.ops.noise import NoiseKey

SIZES = tuple(1 << k for k in range(4, 13))  # 16 .. 4096
KEPT = 1000  # choices
GAIN = 1.05  # a larger micro-batch must give so many times more samples a second


@dataclass(frozen=True)
class Choice:
    """A micro-batch and a number of threads, with the rates that speak for them.

    Attributes:
        batch: micro-batch.
        threads: of torch; None where the device is not the CPU.
        rates: samples a second of one evaluation each, as "threads x batch".
    """

    batch: int
    threads: int | None
    rates: dict[str, float]


def choose_batch(
    model: ScoreModel,
    device: torch.device | str | None = None,
    sizes: tuple[int, ...] = SIZES,
    threads: tuple[int, ...] | None = None,
) -> Choice:
    """Choose the micro-batch and the number of threads by timing the network as it is.

    For each number of threads the sizes rise until one is not GAIN times faster than the best before
    it, or memory is at its end. The first choice for a network and a processor, or a GPU, is kept in the cache and
    given again, so that runs of one machine agree: samples depend on the micro-batch through the network's rounding.
    Seconds, not minutes.

    Args:
        model: its network is timed as Python calls it, also where a run replays it from a CUDA graph: small
            micro-batches are then faster than they seem here. A prepared one takes one micro-batch only.
        device: that it runs on; where its parameters live if left out.
        sizes: to try, rising.
        threads: to try; physical and logical cores if left out, or $OMP_NUM_THREADS alone where it is set.

    Raises:
        ValueError: no size, a size or a thread count below 1, or a first size that memory has no room for.
    """
    device = Execution(device).on(model.net).place
    counts = (threads or _counts()) if device.type == "cpu" else (torch.get_num_threads(),)
    if not sizes or min(sizes) < 1 or min(counts) < 1:
        raise ValueError(f"sizes = {sizes} and threads = {counts} must be positive")
    name = ""
    if isinstance(model.net, nn.Module):
        on = f"{device} {accelerator(device)}" if device.type == "cuda" else str(device)
        name = package.key_of(model.net, (*sizes, *counts), on) + ".json"
        try:
            return Choice(**json.loads(cache.read(cache.private("batches", make=False) / name)))
        except (OSError, ValueError, TypeError):
            pass
    rates, best = {}, (0.0, sizes[0], counts[0])
    for count in counts:
        with undisturbed(place=device, threads=count), evaluating(model.net):
            top = 0.0
            for size in sizes:
                rate = _rate(model, size, device)
                if rate is None:
                    break
                rates[f"{count} x {size}"] = round(rate, 1)
                if rate < GAIN * top:
                    break
                top, best = rate, max(best, (rate, size, count), key=lambda b: b[0])
    if not rates:
        raise ValueError(
            f"there is no memory for {sizes[0]} samples of {tuple(model.shape)} at once; give smaller sizes"
        )
    choice = Choice(best[1], best[2] if device.type == "cpu" else None, rates)
    if name:
        try:
            home = cache.private("batches")
            cache.write(home / name, (json.dumps(asdict(choice)) + "\n").encode())
            cache.sweep(home)
            cache.prune(home.glob("*.json"), KEPT, KEPT << 12)
        except OSError:
            pass  # measured again next time
    return choice


def _rate(model: ScoreModel, size: int, device: torch.device) -> float | None:
    """Return samples a second at a micro-batch; None if memory has no room for it."""
    try:
        return size / _seconds(model, size, device)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
    if device.type == "cuda":  # now that the error no longer holds what it had made
        torch.cuda.empty_cache()
    return None


def _seconds(model: ScoreModel, size: int, device: torch.device) -> float:
    """Return the median time of one evaluation, of three after a first."""
    u = torch.linspace(-1.0, 1.0, size * math.prod(model.shape), device=device).view(size, *model.shape)
    middle = model.schedule.T / 2
    label = torch.full(
        (size, 2) if model.two_times else (size,),
        float(model.parametrization.c_noise(model.schedule, middle)),
        device=device,
    )
    key = NoiseKey.of(0, range(size), device)
    cond = condition_of(model, key, 0 if model.classes else None, None)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        evaluate(model, u, label, cond).sum().item()  # waits for the device
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def _counts() -> tuple[int, ...]:
    """Return the numbers of threads worth a try: physical and logical cores that this process may use."""
    if os.environ.get("OMP_NUM_THREADS"):
        return (torch.get_num_threads(),)
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    siblings = set()
    for k in cpus:
        try:
            siblings.add(Path(f"/sys/devices/system/cpu/cpu{k}/topology/thread_siblings_list").read_text())
        except OSError:
            siblings.add(str(k))
    return tuple(sorted({len(siblings), len(cpus)}))
