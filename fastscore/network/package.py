"""Networks compiled ahead of time (AOTInductor), kept in the user's cache and loaded without a compiler.

A package is native code. It is therefore read only from the user's own cache folder (see network/cache.py),
``$XDG_CACHE_HOME/fastscore/networks`` or ``~/.cache/fastscore/networks``, and never from beside a model,
which may come from anywhere. Its name is a digest of all that the code depends on. A note beside it holds
the digest of its bytes and the errors that its checks have found, or why there is no package; what does not
match is said and ignored.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastscore.network import cache as files
from fastscore.network.jit import compiler
from fastscore.network.watch import attributes, tensors
from fastscore.ops.machine import processor, raw

RECIPE = 2  # of what is compiled; another one makes other packages
# Measured best of plain, freezing, max-autotune and channels_last weights: freezing packs constant
# weights for oneDNN, whose convolutions then work on channels_last activations whatever they were.
# torch 2.6 cannot freeze linear layers; what fails is compiled again without.
OPTIONS: tuple[dict[str, Any], ...] = ({"freezing": True}, {})
KINDS = (".pt2", ".compiled")  # packages, and what torch.compile makes: see network/artefacts.py
KEPT, KEPT_BYTES, SCRATCH_BYTES = 32, 2 << 30, 256 << 20  # packages; bytes of them; of what the compiler keeps

Call = Callable[..., Tensor]
Say = Callable[[str], None]


@dataclass
class Package:
    """A compiled network.

    Attributes:
        call: it, as a function of its inputs.
        note: the file that tells of it; None if it is not kept.
        checked: the error that a check has found, by the digest of all that the check depends on beside the package.
    """

    call: Call
    note: Path | None = None
    entry: dict[str, Any] = field(default_factory=dict)

    @property
    def checked(self) -> dict[str, float]:
        return self.entry["checked"]

    def remember(self, trial: str, error: float) -> None:
        """Keep the error that a check has found, for processes to come."""
        if self.note is None:
            return
        self.entry["checked"] = {**dict(list(self.checked.items())[-7:]), trial: error}
        try:
            files.write(self.note, _json(self.entry))
        except OSError:
            pass  # checked again next time


class Remembered(Exception):
    """This network could not be compiled before, by the same versions and compiler; the message says why."""


def key_of(net: nn.Module, shape: tuple[int, ...], dtype: str, machine: Sequence[str] | None = None) -> str:
    """Return the digest of what a package depends on.

    Weights, buffers, the layers as they print and their plain attributes, the files that define them, the input shape,
    the numerics, the number of threads, versions and processor.

    Args:
        machine: of code that reads weights as inputs, what it is compiled for in place of threads and processor: their
            values are then no part of the key.
    """
    digest = hashlib.sha256()
    where = [torch.get_num_threads(), torch.__version__, processor()]
    where = where if machine is None else [torch.__version__, *machine]
    facts = [RECIPE, shape, dtype, *where, repr(net), OPTIONS]
    digest.update(json.dumps(facts, default=str).encode())
    for file in sorted({_source(type(m)) for m in net.modules()} - {""}):
        digest.update(Path(file).read_bytes())
    digest.update(repr(attributes(net)).encode())
    for name, tensor in tensors(net):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if machine is None:
            digest.update(raw(tensor))
    return digest.hexdigest()[:32]


def folder() -> Path:
    """Return where packages are kept; OSError if there is no place that this user alone can write."""
    return files.private("networks")


def load(key: str, say: Say) -> Package | None:
    """Return the package of a key; None if there is none that is whole and this user's own.

    Raises:
        Remembered: there is none because compiling failed, and nothing has changed since.
    """
    note: Path | str = key
    try:
        note = files.private("networks", make=False) / f"{files.checked_name(key)}.json"
        entry = json.loads(files.read(note))
        if "failed" in entry:
            if entry["compiler"] == _compiler():
                raise Remembered(f"{entry['failed']}; remembered in {note}, delete it to try again")
            return None
        if not all(isinstance(e, float) for e in entry["checked"].values()):
            raise ValueError("it is not of this network")
        file, _ = files.whole(note, entry)
        package = Package(_runner(file), note, entry)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        say(f"compiled network {note} ignored: {one_line(error)}")
        return None
    files.used(file)
    files.used(note)
    return package


def build(key: str, net: nn.Module, inputs: Sequence[Tensor], say: Say) -> Package:
    """Compile a network for inputs of these shapes, keep the package and return it.

    Raises:
        Exception: whatever torch.export or the compiler make of it; ``failed`` remembers that.
    """
    try:
        home: Path | None = folder()
        files.probe(home)
    except OSError as error:
        say(f"the compiled network is not kept: {one_line(error)}")
        home = None
    files.inductor(say)
    # The compiler splits its command line at spaces, so the path of what it makes must have none.
    work = files.workspace("fastscore-build-") if home is None or " " in str(home) else _work(home)
    file, entry = work / "network.pt2", {"file": "", "sha256": "", "checked": {}}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(net, tuple(inputs), strict=False)
            _compile(program, file)
        call = _runner(file)
        if home is None:
            return Package(call, None, entry)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        target = home / f"{key}-{digest[:8]}.pt2"  # its own name, so that two processes never mix halves
        staged = home / f".build-{work.name}"
        shutil.copyfile(file, staged)
        staged.chmod(0o600)
        os.replace(staged, target)
        package = Package(call, home / f"{key}.json", {**entry, "file": target.name, "sha256": digest})
        assert package.note is not None
        files.write(package.note, _json(package.entry))
        tidy(home)
        return package
    finally:
        shutil.rmtree(work, ignore_errors=True)


def failed(key: str, error: BaseException, say: Say) -> None:
    """Remember that a network cannot be compiled, until versions, code, weights or the compiler change."""
    if isinstance(error, OSError | MemoryError):  # the machine's state, which passes
        return
    try:
        entry = {"failed": one_line(error), "compiler": _compiler()}
        files.write(folder() / f"{files.checked_name(key)}.json", _json(entry))
    except OSError as reason:
        say(f"that is not remembered: {one_line(reason)}")


def tidy(home: Path) -> None:
    """Delete what was used longest ago, packages without a note, notes of old failures, and halves of dead builds."""
    files.sweep(home)
    packages = [file for kind in KINDS for file in home.glob(f"*{kind}")]
    notes = {note.stem for note in home.glob("*.json")}
    files.prune([p for p in packages if p.name[:32] not in notes], 0, 0)
    for package in files.prune(packages, KEPT, KEPT_BYTES):
        (home / f"{package.name[:32]}.json").unlink(missing_ok=True)
    left = {p.name[:32] for p in packages if p.exists()}
    files.prune([n for n in home.glob("*.json") if n.stem not in left], KEPT, KEPT_BYTES)
    scratch = home.with_name("inductor")
    if scratch.is_dir():  # headers stay: a process that compiles knows them by their path
        files.prune((f for f in scratch.rglob("*") if f.is_file() and f.suffix != ".h"), 1 << 20, SCRATCH_BYTES)


def _work(home: Path) -> Path:
    return Path(tempfile.mkdtemp(prefix=".build-", dir=home))


def _compile(program: Any, file: Path) -> None:
    """Compile a traced network to a file, with the first of OPTIONS that this torch can."""
    from torch._inductor import aoti_compile_and_package  # a second, so after what may fail

    for options in OPTIONS:
        try:
            with quiet(file.with_suffix(".log")):
                aoti_compile_and_package(program, package_path=str(file), inductor_configs=dict(options))
            return
        except (OSError, MemoryError):
            raise
        except Exception:  # in every way there is; the last one tells
            if options is OPTIONS[-1]:
                raise


@contextmanager
def quiet(log: Path) -> Generator[None]:
    """Keep to a file what compilers write to this process's stderr: of torch 2.6 that is 19,000 lines of warnings."""
    try:
        stderr = os.dup(2)
    except OSError:  # closed
        yield
        return
    try:
        with log.open("wb") as file:
            sys.stderr and sys.stderr.flush()
            os.dup2(file.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _runner(file: Path) -> Call:
    """Load a package; the loader itself, since torch._inductor takes a second to import."""
    kind = torch._C._aoti.AOTIModelPackageLoader  # pyright: ignore
    for extra in ((False, 1, -1), (False, 1), (False,), ()):  # as versions of torch take them
        try:
            loader = kind(str(file), "model", *extra)
        except TypeError:
            continue
        return lambda *inputs: loader.run(list(inputs))[0]
    from torch._inductor import aoti_load_package

    return aoti_load_package(str(file))


def _compiler() -> list[Any]:
    """Return what tells the compiler from the one that is installed in its place."""
    file = compiler()
    if file is None:
        return []
    info = os.stat(file)
    return [file, info.st_size, int(info.st_mtime)]


def _source(kind: type) -> str:
    """Return the file that defines a class of layers; none for torch's own, whose version is in the key."""
    if kind.__module__.split(".")[0] == "torch":
        return ""
    try:
        return inspect.getsourcefile(kind) or ""
    except (OSError, TypeError):  # defined at a prompt; the check against the network itself remains
        return ""


def _json(entry: dict[str, Any]) -> bytes:
    return (json.dumps(entry) + "\n").encode()


def one_line(error: BaseException) -> str:
    """Return an error as one line, whatever torch or a compiler put into it; whole where it names a file."""
    lines = str(error).strip().splitlines() or [""]
    told = next((line.strip() for line in lines[1:] if "error: " in line), "")  # of a compiler
    text = f"{lines[0] if isinstance(error, OSError) else lines[0][:200]} {told[:200]}".strip()
    return f"{type(error).__name__}: {text}" if text else f"{type(error).__name__} without a message"
