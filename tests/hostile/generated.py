"""Generated cases: how many, with which seed, what may come out, and where sampling is cut off.

pytest tests/hostile                                a few hundred cases
pytest tests/hostile -m slow                        those of the gate, the same ones every time
CASES=10 SEED=3 pytest tests/hostile -m slow        ten times as many, others
"""

from __future__ import annotations

import io
import linecache
import os
import traceback
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import lru_cache
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import fastscore
from fastscore import cli

ROOT = str(Path(fastscore.__file__).parent)
KERNELS = str(Path(fastscore.__file__).parents[1] / "kernels")
CODES = (0, 2, 5)  # of a command line: done, bad input, storage


class Reached(BaseException):
    """All was checked, and sampling or training would begin."""


def sizes(few: int, many: int) -> pytest.MarkDecorator:
    """Give a test its number of cases: few in every run, a third of many in the gate, all of them nightly."""
    nightly = pytest.param(many, marks=[pytest.mark.slow, pytest.mark.nightly])
    return pytest.mark.parametrize("cases", [few, pytest.param(many // 3, marks=pytest.mark.slow), nightly])


def search(strategy: st.SearchStrategy, check: Callable[[object], None], cases: int) -> None:
    """Check so many generated cases: the same ones every time, unless SEED says otherwise."""
    other = os.environ.get("SEED")
    profile = settings(
        max_examples=cases * int(os.environ.get("CASES", "1")),
        derandomize=other is None,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )

    def test(case):
        check(case)

    test = profile(given(strategy)(test))
    (test if other is None else seed(int(other))(test))()


def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off what computes, once all is checked: the one place of all generated tests."""
    import torch

    from fastscore.data import load as data
    from fastscore.data import toys
    from fastscore.engine import selfcheck
    from fastscore.flow import ProbabilityFlow
    from fastscore.model import folder
    from fastscore.network import timing
    from fastscore.output import folder as folders
    from fastscore.report import metrics, page
    from fastscore.sampler import Sampler
    from fastscore.training import classifier

    def reach(*_: object, **__: object) -> None:
        raise Reached

    whole = folders.new_folder

    def checked_folder(path: Path) -> None:
        with whole(path):
            reach()

    class Choice:
        batch, threads = 4, torch.get_num_threads()

    demo = import_module("fastscore.cli.demo")  # the name is a command's too
    others = demo._refuse_others
    monkeypatch.setattr(demo, "_refuse_others", lambda out: reach(others(out)))  # it writes before it computes
    monkeypatch.setattr(folders, "new_folder", checked_folder)  # of fastscore new, which would leave what it is to
    monkeypatch.setattr(Sampler, "_prepare", reach)
    monkeypatch.setattr("fastscore.joint.micro_batches", reach)
    monkeypatch.setattr("fastscore.chains.micro_batches", reach)
    monkeypatch.setattr(ProbabilityFlow, "_solve", reach)
    monkeypatch.setattr(import_module("fastscore.training.train"), "_steps", reach)  # the name is a function's too
    monkeypatch.setattr(classifier, "train_classifier", reach)
    monkeypatch.setattr(metrics, "features", reach)
    monkeypatch.setattr(page, "write_page", reach)
    monkeypatch.setattr(selfcheck, "checks", lambda *_: [])
    monkeypatch.setattr(timing, "choose_batch", lambda *_: Choice)
    # Only for speed: what a test reads a thousand times is read once.
    load, toy, circles = folder.load_model, lru_cache(toys.toy), lru_cache(toys.circles)
    bundled = lru_cache(lambda name, device: load(name, device))
    monkeypatch.setattr(folder, "bundled", lru_cache(folder.bundled))
    monkeypatch.setattr(folder, "load_model", lambda p, d="cpu": (bundled if p in folder.bundled() else load)(p, d))
    for module in [toys, data]:
        monkeypatch.setattr(module, "toy", lambda name, n, seed=0: toy(name, min(n, 50), seed=seed))
        monkeypatch.setattr(module, "circles", lambda n, seed=0: circles(min(n, 50), seed=seed))


def tree(folder: Path) -> list[str]:
    """Return every name in a folder."""
    return sorted(str(p) for p in folder.rglob("*"))


def command(words: list[str], folder: Path, before: list[str]) -> tuple[int, str]:
    """Run a command line; return exit code, -1 for Reached, and stderr. It says little and leaves nothing."""
    out, err = io.StringIO(), io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(out), redirect_stderr(err):
        warnings.simplefilter("default")
        try:
            cli.main(words)
        except Reached:
            code = -1
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        else:
            raise AssertionError("the command line returned")
    said = err.getvalue()
    assert code in (-1, *CODES), f"exit {code}: {said}"
    assert "Traceback" not in said, said
    if not said.startswith("Usage:"):  # of fastscore alone
        assert len(said.strip().splitlines()) <= 5, said
        assert code in (0, -1) or said.startswith("fastscore:"), said
    assert tree(folder) == before, f"left behind: {set(tree(folder)) ^ set(before)}"
    return code, said


def refused(call: Callable[[], object]) -> str | None:
    """Return the message with which an API call is refused, None if it is not: our own words, in one line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call()
        except Reached:
            return None
        except (ValueError, TypeError) as error:
            at = traceback.extract_tb(error.__traceback__)[-1]
            ours = at.filename.startswith((ROOT, KERNELS)) or at.filename == __file__
            line = linecache.getline(at.filename, at.lineno or 0).strip()
            place = f"{at.filename}:{at.lineno} {line}: {error!r}"
            assert ours and line.startswith("raise"), f"not our own words: {place}"
            assert "\n" not in str(error) and 8 < len(str(error)) < 1000, f"not one line: {place}"
            return str(error)
    return None


JUNK = [
    "",
    " ",
    "-1",
    "0",
    "1",
    "2",
    "3",
    "0.5",
    "1e400",
    "nan",
    "inf",
    "-inf",
    "1e-300",
    "1_000",
    "0x10",
    "\u0663",
    "\u00bd",
    "\u00e9",
    "\x00",
    "\ud800",
    "\x1b[31m",
    "a" * 3000,
    "..",
    "~",
    "True",
    "None",
    "1,2",
    "[]",
    "%s",
    "{0}",
    "\n",
    "1e308",
    "18446744073709551615",
    "18446744073709551616",
    "-0",
    "+1",
    "1.",
    ".5",
    "--",
    "-",
    "-n",
    "1e99",
    "9" * 40,
    "/dev/null",
]
WORDS = st.sampled_from(JUNK) | st.text(max_size=6)
