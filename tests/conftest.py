"""One thread, and new tensors filled with NaN so that what is never written shows."""

from __future__ import annotations

import gc
import os
import signal
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastscore.ops.backend import triton_lack

# After what is installed: beside a checkout's bench lies its fastscore, which without an install has no kernels.
sys.path.append(str(Path(__file__).parents[1]))

TRITON_LACK = triton_lack()
collect_ignore_glob = ["kernels/*"] if TRITON_LACK else []


def pytest_report_header() -> str:
    return f"{TRITON_LACK}, so the tests of its kernels do not run" if TRITON_LACK else "triton: installed"


# What runs in the background of a shell ignores Ctrl-C, and so would all that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before -m looks at the markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tables: dict[str, int] = {}
    for item in items:
        table = item.nodeid.partition("[")[0]
        if item.get_closest_marker("thirds") and not item.get_closest_marker("slow"):
            # Where to begin is up to the name, so that tables over the same cases do not all take the same ones.
            count = tables[table] = tables.get(table, zlib.crc32(table.encode())) + 1
            if count % 3:
                item.add_marker(pytest.mark.slow)
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device; run `pytest -m gpu` on a machine that has one")
        for item in items:
            if item.get_closest_marker("gpu"):  # a folder of that name is a keyword too
                item.add_marker(skip)


# Collection makes half a million objects that stay: a third of its time, and a tenth of the tests', went into looking
# through them again and again for garbage.
gc.disable()


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
    gc.enable()


# Tensors here are small: a second thread would spin and not help, in this process or in one that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """One thread, whatever the test before has set."""
    torch.set_num_threads(1)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in this process; return exit code, stdout and stderr."""
    from fastscore import cli

    def command(*argv: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            cli.main([str(word) for word in argv])
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return command


@pytest.fixture
def poisoned_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.empty and torch.empty_like return NaN in every float element."""

    def poison(make):
        def made(*args, **kwargs):
            t = make(*args, **kwargs)
            return t.fill_(float("nan")) if t.is_floating_point() else t

        return made

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poison(getattr(torch, name)))
