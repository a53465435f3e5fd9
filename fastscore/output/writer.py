"""Writers of samples: one .npz for evaluators, a contact sheet, and PNG files by id."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastscore.output.disk import allocate
from fastscore.output.images import save_png
from fastscore.output.record import image_name

THREADS = min(4, os.cpu_count() or 1)


class Writer:
    """Turns samples into files in worker threads, while the next ones are computed.

    Samples gather in one array on disk, so that memory does not grow with their number; at most two
    micro-batches a thread wait. An error of a worker is raised by the next ``put``, or at the end; an image that the
    disk has no room for at the end only, since the samples themselves have theirs.

        with Writer(folder, ids, (28, 28, 1), np.uint8, quantize_ref, png=True) as writer:
            for part, x in sampler.stream(ids):
                writer.put(part, x)
            writer.finish()
            write_npz(folder / "samples.npz", samples=writer.samples)

    Args:
        out: folder of the images.
        ids: all ids that will come, each once, in the order of the array.
        shape, dtype: of one entry of the array.
        convert: what a worker does to a micro-batch first (quantize images), or None.
        png: whether each sample is also written to ``png/<id>.png``.
        subdirs: one folder for each 1000 ids.
        array: the .npy file of the array; one without a name in ``out`` if left out.
        spend: told the bytes of each image before it is written.
    """

    def __init__(
        self,
        out: Path,
        ids: Sequence[int] | NDArray[np.int64],
        shape: tuple[int, ...],
        dtype: type[np.generic],
        convert: Callable[[Tensor], Tensor] | None = None,
        png: bool = False,
        subdirs: bool = False,
        *,
        array: Path | None = None,
        spend: Callable[[int], None] | None = None,
    ) -> None:
        self.out, self.convert, self.png, self.subdirs = out, convert, png, subdirs
        self._ids = np.asarray(ids, np.int64)
        self._order = np.argsort(self._ids)
        full = (len(self._ids), *shape)
        self._spend, self._failed = spend, None
        self.samples: NDArray[Any] = np.empty(full, dtype)
        if self.samples.nbytes:  # an empty array cannot be mapped
            with TemporaryFile(dir=out) if array is None else array.open("wb+") as file:
                np.lib.format.write_array_header_1_0(
                    file,
                    {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": full},
                )
                file.flush()
                start = file.tell()
                allocate(file.fileno(), start + self.samples.nbytes, out, {"samples": self.samples.nbytes})
                self.samples = np.memmap(file, dtype, "r+", offset=start, shape=full)
        self._pool, self._waiting = ThreadPoolExecutor(THREADS, "fastscore-writer"), deque[Future[None]]()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def put(self, ids: Tensor, x: Tensor) -> None:
        """Hand over the samples ``x`` [n, *] of ``ids`` [n]; waits while too many wait already."""
        copied = None
        if x.is_cuda:  # convert and copy behind the sampler's own work; the worker waits for this copy alone
            x = x if self.convert is None else self.convert(x)
            x = torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
            copied = torch.cuda.current_stream().record_event()
        while len(self._waiting) >= 2 * THREADS:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._write, ids.cpu().numpy(), x, copied))

    def finish(self) -> None:
        """Wait until all is written."""
        while self._waiting:
            self._waiting.popleft().result()
        if self._failed is not None:
            raise self._failed

    def _write(self, ids: NDArray[np.int64], x: Tensor, copied: torch.Event | None) -> None:
        if copied is not None:
            copied.synchronize()
        elif self.convert is not None:
            x = self.convert(x)
        values = x.numpy()
        self.samples[self._order[np.searchsorted(self._ids, ids, sorter=self._order)]] = values
        for k, image in zip(ids.tolist(), values, strict=True) if self.png else ():
            if self._failed is None:
                try:
                    self._write_png(k, image)
                except OSError as error:
                    self._failed = error

    def _write_png(self, k: int, image: NDArray[np.uint8]) -> None:
        path, file = self.out / image_name(k, self.subdirs), BytesIO()
        save_png(file, image)
        if self._spend is not None:
            self._spend(-(-len(file.getvalue()) // 4096) * 4096)  # in whole blocks
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as opened:
            opened.write(file.getvalue())
            opened.flush()
            os.fsync(opened.fileno())
