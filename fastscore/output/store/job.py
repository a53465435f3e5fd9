"""The work of a run: any shard of it, from nothing but its number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastscore.ops.noise import NoiseKey
from fastscore.output.progress import Told
from fastscore.output.record import ranges
from fastscore.output.store.digest import described, digest
from fastscore.output.store.formats import Arrays, Shard, versions
from fastscore.output.store.manifest import Manifest, machine
from fastscore.output.writer import Writer

GATHERED = 1 << 30  # bytes of samples and ids up to which the shards of a run become one file
SMALLEST, MOST = 1 << 17, 10_000  # elements of a shard; shards of a run, unless that many elements are far too few


class Shaped(Protocol):
    """A model, or whatever has samples of a shape; of a latent model ``decoder`` makes images of them."""

    @property
    def shape(self) -> tuple[int, ...]: ...


class Quantizer(Protocol):
    """Operations that turn samples [n, C, H, W] in -1 .. 1 into bytes [n, H, W, C]."""

    @property
    def quantize(self) -> Callable[..., Tensor]: ...


class Source(Protocol):
    """A source of samples that can say how it draws them: a Sampler, or whatever streams as one does.

    Attributes:
        model: what is drawn.
        prepared: the model as it runs; read before the clock starts, since it may compile.
        ops: its ``quantize`` makes bytes of images.
    """

    @property
    def model(self) -> Shaped: ...
    @property
    def prepared(self) -> object: ...
    @property
    def ops(self) -> Quantizer: ...
    def stream(self, request: Any, /, *, progress: Told) -> Iterator[tuple[Tensor, Tensor]]: ...
    def record(self) -> dict[str, Any]: ...


class RequestLike(Protocol):
    """The samples that are asked for: a Request."""

    @property
    def key(self) -> NoiseKey: ...
    @property
    def ids(self) -> Tensor: ...
    def __len__(self) -> int: ...
    @property
    def told(self) -> Sequence[Tensor | Mapping[str, Tensor] | None]: ...
    def at(self, positions: Sequence[int], /) -> RequestLike: ...
    def of_run(self, n: int, /) -> RequestLike: ...


@dataclass(frozen=True)
class Asked:
    """The samples that are asked for, in parts: no line for each of them is held before its part is drawn.

    Attributes:
        ids: of all samples, in order; a range costs nothing.
        lines: positions -> the Request of the samples at them.
        told: digest of the seed and of all that samples are given.
        seed: of all samples, or "one a sample".
    """

    ids: Sequence[int] | NDArray[np.int64]
    lines: Callable[[Sequence[int]], RequestLike]
    told: str
    seed: int | str

    @classmethod
    def of(cls, request: RequestLike | Asked) -> Asked:
        """Return the samples of a request."""
        if isinstance(request, Asked):
            return request
        key = request.key
        seed = int(key.seed) & 0xFFFFFFFFFFFFFFFF if len(key.seed) == 1 else "one a sample"
        given = {k: v for k, v in vars(request).items() if k not in ("key", "valid", "among", "others", "negative")}
        if len(request.told) > 2 or request.told[-1] is not None:  # as runs without them always were
            given["told"] = request.told[1:]
        if given.get("prior_ids") is None:  # a field that came later: runs that were begun without it go on
            given.pop("prior_ids", None)
        told = digest({**given, "seed": key.seed if len(key.seed) > 1 else seed})
        return cls(key.ids.cpu().numpy(), request.at, told, seed)

    def __len__(self) -> int:
        return len(self.ids)

    def check_once(self, png: bool, trajectory: bool) -> None:
        """Raise ValueError for an id that comes twice, where files are named by it or a trajectory follows it."""
        if (png or trajectory) and not isinstance(self.ids, range) and len(np.unique(self.ids)) < len(self.ids):
            raise ValueError(
                f"an id comes twice, which {'png files, named by ids, have' if png else 'a trajectory has'} no room "
                "for; draw it in two runs"
            )

    @property
    def text(self) -> str:
        """The ids as ranges."""
        if isinstance(self.ids, range) and self.ids.step == 1 and self.ids:
            return f"{self.ids[0]}-{self.ids[-1]}" if len(self.ids) > 1 else f"{self.ids[0]}"
        return ranges(np.asarray(self.ids, np.int64).tolist())


@dataclass(frozen=True)
class Job:
    """A run that can be drawn: its manifest, and the sampler and requests that it describes."""

    source: Source
    asked: Asked
    manifest: Manifest

    def ready(self) -> Job:
        """Return it with its numerics, which only the prepared network has: this may compile."""
        sampler = drawn_by(self.source)
        execution, record = sampler.execution, sampler.record()
        network = record.get("network", {})
        numerics = {
            **machine(execution.place),
            "batch": execution.batch,
            "dtype": str(execution.dtype).removeprefix("torch."),
            "network": {k: network.get(k) for k in ("dtype", "compile", "lines")}
            | {k: v for k in ("residual", "tf32") if (v := network.get(k)) is not None},  # on CUDA
            **({"guided": "batched"} if record.get("guided") == "batched" else {}),
            **versions(self.manifest.format),
        }
        return replace(self, manifest=replace(self.manifest, numerics=numerics))

    @property
    def entry(self) -> tuple[tuple[int, ...], type[np.generic]]:
        """Shape and dtype of a sample in a file: images as bytes [H, W, C], anything else as float32."""
        return written(self.source.model)

    @property
    def told_bytes(self) -> int:
        """The most bytes of what one sample is told."""
        first = self.asked.lines(range(min(1, len(self.asked))))
        return 16 + sum(x.nbytes for x in conditions(first).values())

    def draw(self, number: int, beat: Callable[[float], None]) -> Shard:
        """Draw a shard.

        Args:
            beat: called with how many of its samples are done, parts of one included, after each row or micro-batch.

        Raises:
            NonFiniteError: a sample became NaN or Inf.
        """
        return Shard(number, self.manifest.hash, self.arrays(range(*self.manifest.span(number)), beat))

    def arrays(self, positions: Sequence[int], beat: Callable[[float], None] = lambda done: None) -> Arrays:
        """Return what a shard of the samples at some positions of the run holds; else as ``draw``."""
        request, (shape, kind) = self.asked.lines(positions).of_run(self.manifest.n), self.entry
        decoder: Any = getattr(self.source.model, "decoder", None)
        samples, ids = np.empty((len(positions), *shape), kind), request.ids.cpu().numpy()
        quantize = self.source.ops.quantize if kind is np.uint8 else None
        for at in _apart(ids):
            rows = samples if len(at) == len(ids) else np.empty((len(at), *shape), kind)
            with Writer(rows, ids[at], quantize) as writer:
                part = request if rows is samples else request.at(at.tolist())
                for done, x in self.source.stream(part, progress=beat):
                    for these, images in [(slice(None), x)] if decoder is None else decoder.parts(x, done):
                        writer.put(done[these], images)
                writer.finish()
            if rows is not samples:
                samples[at] = rows
        return {"samples": samples, "ids": ids, **conditions(request)}


def job_of(
    source: Source,
    request: RequestLike | Asked,
    *,
    shard: int | None = None,
    format: str = "npz",
    gathered: bool | None = None,
    argv: Sequence[str] | None = None,
) -> Job:
    """Return the job of drawing a request by a sampler; its network is not yet prepared.

    Args:
        shard: samples of one shard; left out: some seconds of work on a CPU, some megabytes on a GPU.
        format: of a shard.
        gathered: whether shards become one file at the end; left out: if it is npz and not above GATHERED bytes.
        argv: the command line, if there was one.
    """
    asked, model, sampler = Asked.of(request), source.model, drawn_by(source)
    execution = sampler.execution
    (shape, kind), decoder = written(model), getattr(model, "decoder", None)
    n, elements = len(asked), max(1, math.prod(shape))
    stored = elements * kind().itemsize + 8
    if gathered is None:
        gathered = format in ("npz", "adm-npz") and n * stored <= GATHERED
    size = shard
    if size is None:
        few = 4 if execution.place.type == "cpu" else 64
        least = max(few * execution.batch, min(SMALLEST // elements, 1 << 13), n // MOST)
        size = -(-least // execution.batch) * execution.batch
    plan = sampler.plan
    what = {
        "seed": asked.seed,
        "told": asked.told,
        "model": model_digest(model),
        "shape": list(model.shape),
        **({"decoded": list(decoder.shape)} if decoder is not None else {}),
        **{k: described(getattr(sampler, k)) for k in ("schedule", "solver", "grid", "guide")},
        **({"plan": plan.hash} if plan is not None else {}),
        **{k: described(sampler.settings.get(k)) for k in ("clip", "parallel", "guidance", "start")},
    }
    words = None if argv is None else tuple(argv)
    return Job(source, asked, Manifest(n, asked.text, size, format, gathered, what, {}, words))


def _apart(ids: NDArray[np.int64]) -> list[NDArray[np.intp]]:
    """Return positions of ids in lists that have each id once: a sampler says of which id a sample is, not which one.

    Two samples of one id differ in seed or condition.
    """
    order = np.argsort(ids, kind="stable")
    first = np.searchsorted(ids[order], ids[order])  # of the same id
    times = np.empty(len(ids), np.intp)
    times[order] = np.arange(len(ids)) - first
    return [np.flatnonzero(times == k) for k in range(times.max(initial=0) + 1)]


def written(model: Any) -> tuple[tuple[int, ...], type[np.generic]]:
    """Return shape and dtype of what files hold of a sample: images as bytes [H, W, C], anything else as float32.

    An image is a sample of three axes, or what a decoder makes of one; latents without a decoder stay as they are.
    """
    decoder = getattr(model, "decoder", None)
    shape = model.shape if decoder is None else decoder.shape
    latents = decoder is None and bool(getattr(model, "info", {}).get("latents"))
    return ((*shape[1:], shape[0]), np.uint8) if len(shape) == 3 and not latents else (shape, np.float32)


def drawn_by(source: Source) -> Any:
    """Return the sampler itself, of one that is traced."""
    return getattr(source, "sampler", source)


def model_digest(model: Any) -> str:
    """Return the digest of all that a model is, but for what is written about it and where it was loaded from."""
    described = {k: v for k, v in vars(model).items() if k not in ("info", "class_names", "folder")}
    if not described.get("two_times", True):  # a field that came later: runs that were begun without it go on
        del described["two_times"]
    return digest(described)


def conditions(request: RequestLike) -> dict[str, NDArray[Any]]:
    """Return what each sample was told, its seed where they differ, and its prior's id if that is not its own."""
    (cond, *others, negative), key = request.told, request.key
    if isinstance(cond, Mapping):
        arrays = {name if name == "labels" else f"cond.{name}": _numbers(v) for name, v in cond.items()}
    else:
        arrays = {} if cond is None else {"labels" if cond.ndim == 1 else "cond": _numbers(cond)}
    for which, more in [*((f"others{k}", v) for k, v in enumerate(others)), ("negative", negative)]:
        named = more if isinstance(more, Mapping) else {} if more is None else {"": more}
        arrays |= {f"cond.{which}{name and '_' + name}": _numbers(v) for name, v in named.items()}
    if len(key.seed) > 1:
        arrays["seeds"] = key.seed.cpu().numpy().view(np.uint64)
    if (prior := getattr(request, "prior_ids", None)) is not None:
        arrays["prior_ids"] = prior.cpu().numpy()
    return arrays


def _numbers(v: Tensor) -> NDArray[Any]:
    """Return a tensor's values; those of a float that NumPy does not know, bfloat16 or smaller, as float32."""
    known = not v.is_floating_point() or v.dtype in (torch.float16, torch.float32, torch.float64)
    return (v if known else v.float()).cpu().numpy()
