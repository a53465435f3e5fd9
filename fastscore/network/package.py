"""Networks compiled ahead of time (AOTInductor), kept in the user's cache and loaded without a compiler.

A package is native code. It is therefore read only from the user's own cache folder,
``$XDG_CACHE_HOME/fastscore/networks`` or ``~/.cache/fastscore/networks``, and never from beside a model,
which may come from anywhere. Its name is a digest of all that the code depends on, a note beside it holds
the digest of its bytes, and what does not match is said and ignored. The folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import platform
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from fastscore.files import cache_folder, write_text
from fastscore.network.watch import attributes, tensors

RECIPE = 1  # of what is compiled; another one makes other packages
# Measured best of plain, freezing, max-autotune and channels_last weights: freezing packs constant
# weights for oneDNN, whose convolutions then work on channels_last activations whatever they were.
OPTIONS = {"freezing": True}

Call = Callable[..., Tensor]


def key_of(net: nn.Module, shape: tuple[int, ...], dtype: str) -> str:
    """Return the digest of what a package depends on.

    Weights, buffers, the layers as they print and their plain attributes, the files that define them, the input shape,
    the numerics, the number of threads, versions and processor.
    """
    digest = hashlib.sha256()
    facts = [RECIPE, shape, dtype, torch.get_num_threads(), torch.__version__, _processor(), repr(net), OPTIONS]
    digest.update(json.dumps(facts, default=str).encode())
    for file in sorted({_source(type(m)) for m in net.modules()} - {""}):
        digest.update(Path(file).read_bytes())
    digest.update(repr(attributes(net)).encode())
    for name, tensor in tensors(net):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def folder() -> Path:
    """Return where packages are kept."""
    return cache_folder() / "networks"


def load(key: str, say: Callable[[str], None]) -> Call | None:
    """Return the package of a key as a function of its inputs; None if there is none that is whole."""
    note = folder() / f"{key}.json"
    try:
        entry = json.loads(note.read_text())
        file, digest = folder() / str(entry["file"]), entry["sha256"]
        if _sha256(file) != digest:
            raise ValueError("its bytes are not those that were written")
        return _runner(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        say(f"compiled network {note} ignored: {one_line(error)}")
        return None


def build(key: str, net: nn.Module, inputs: tuple[Tensor, ...], say: Callable[[str], None]) -> Call:
    """Compile a network for inputs of these shapes, keep the package and return it.

    Raises:
        Exception: whatever torch.export or the compiler make of it.
    """
    home = folder()
    try:
        home.mkdir(parents=True, exist_ok=True)
        work = tempfile.mkdtemp(prefix=".build-", dir=home)
    except OSError as error:
        say(f"the compiled network is not kept: {one_line(error)}")
        work = tempfile.mkdtemp(prefix="fastscore-")
    file = Path(work) / "network.pt2"
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(net, inputs, strict=False)
            from torch._inductor import aoti_compile_and_package  # a second, so after what may fail

            aoti_compile_and_package(program, package_path=str(file), inductor_configs=dict(OPTIONS))
        call = _runner(file)
        if Path(work).parent == home:
            digest = _sha256(file)
            target = home / f"{key}-{digest[:8]}.pt2"  # its own name, so that two processes never mix halves
            os.replace(file, target)
            write_text(home / f"{key}.json", json.dumps({"file": target.name, "sha256": digest}) + "\n")
        return call
    finally:
        file.unlink(missing_ok=True)
        Path(work).rmdir()


def _runner(file: Path) -> Call:
    """Load a package; the loader itself, since torch._inductor takes a second to import."""
    try:
        loader = torch._C._aoti.AOTIModelPackageLoader(str(file), "model", False, 1, -1)  # pyright: ignore
    except (AttributeError, TypeError):  # another version of torch
        from torch._inductor import aoti_load_package

        return aoti_load_package(str(file))
    return lambda *inputs: loader.run(list(inputs))[0]


@cache
def _processor() -> str:
    """Return what compiled code depends on: architecture, vector width, the kernel's list of features."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    features = {line for line in lines if line.startswith(("model name", "flags", "Features"))} or set(lines)
    about = f"{platform.system()} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return about + hashlib.sha256("\n".join(sorted(features)).encode()).hexdigest()[:16]


def _source(kind: type) -> str:
    """Return the file that defines a class of layers; none for torch's own, whose version is in the key."""
    if kind.__module__.split(".")[0] == "torch":
        return ""
    try:
        return inspect.getsourcefile(kind) or ""
    except (OSError, TypeError):  # defined at a prompt; the check against the network itself remains
        return ""


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def one_line(error: BaseException) -> str:
    """Return an error as one line, whatever torch or a compiler put into it."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
