"""Mutation test of the suite: one random change of the source at a time, and the tests that notice it.

``python tests/mutations.py --count 30 --seed 0`` copies the checkout to a temporary folder and there changes one
number, operator, comparison, sign or mask at a time. The tests of the changed file's folder run first, all default
tests if those pass. Each line says what was changed and which test failed. The exit status is 1 if a change survived
that is not listed in EQUIVALENT with the reason why nothing can notice it.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = (
    "fastscore/solvers/*.py", "fastscore/plan/*.py", "fastscore/process/*.py", "fastscore/ops/*.py",
    "fastscore/engine/loop.py", "fastscore/engine/batches.py", "fastscore/model/condition*.py",
    "fastscore/guidance/*.py", "fastscore/training/losses.py", "fastscore/training/settings.py",
    "fastscore/training/train.py", "fastscore/training/checkpoint.py", "kernels/*.py",
)  # fmt: skip
FINGERPRINTS = "tests/test_fingerprints.py"
FIRST = {  # tests that run first, by the folder of the changed file
    "solvers": (FINGERPRINTS, "tests/solvers", "tests/engine/test_adaptive.py"),
    "plan": (FINGERPRINTS, "tests/plan", "tests/solvers"),
    "process": (FINGERPRINTS, "tests/process", "tests/solvers"),
    "ops": ("tests/ops", FINGERPRINTS),
    "engine": (FINGERPRINTS, "tests/engine"),
    "model": (FINGERPRINTS, "tests/model/test_analytic.py", "tests/model/test_conditions.py", "tests/guidance"),
    "guidance": (FINGERPRINTS, "tests/guidance"),
    "training": ("tests/training",),
    "kernels": ("tests/kernels", "tests/ops"),
}
# (file, line as it stands, before, after): why no test can notice.
EQUIVALENT: dict[tuple[str, str, str, str], str] = {}
SWAPS = {
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"), ast.Pow: ("**", "*"),
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.And: ("and", "or"), ast.Or: ("or", "and"),
}  # fmt: skip


@dataclass(frozen=True)
class Mutation:
    """A replacement of the characters start .. end of a file."""

    file: str
    start: int
    end: int
    after: str
    source: str

    @property
    def before(self) -> str:
        return self.source[self.start : self.end]

    @property
    def line(self) -> int:
        return self.source.count("\n", 0, self.start) + 1

    @property
    def text(self) -> str:
        return self.source.splitlines()[self.line - 1].strip()

    @property
    def mutated(self) -> str:
        return self.source[: self.start] + self.after + self.source[self.end :]


class Sites(ast.NodeVisitor):
    """Collects (start, end, replacement) of every place where a file may be changed."""

    def __init__(self, source: str) -> None:
        self.source, self.found = source, []
        self.lines = [0]
        for line in source.splitlines(keepends=True):
            self.lines.append(self.lines[-1] + len(line.encode()))
        self.bytes = source.encode()

    def at(self, line: int, column: int) -> int:
        """Offset in characters of a position that ast gives in bytes."""
        return len(self.bytes[: self.lines[line - 1] + column].decode())

    def span(self, node: ast.expr) -> tuple[int, int]:
        return self.at(node.lineno, node.col_offset), self.at(node.end_lineno, node.end_col_offset)

    def between(self, left: ast.expr, right: ast.expr, kind: ast.AST, suffix: str = "") -> None:
        """Swap the operator that stands between two operands."""
        if type(kind) not in SWAPS:
            return
        before, after = SWAPS[type(kind)]
        start, end = self.span(left)[1], self.span(right)[0]
        gap = re.sub(r"#[^\n]*", lambda comment: " " * len(comment[0]), self.source[start:end])
        at = gap.find(before + suffix)
        if at >= 0:
            self.found.append((start + at, start + at + len(before), after))

    def visit_Constant(self, node: ast.Constant) -> None:
        if type(node.value) is int:
            self.found.append((*self.span(node), str(node.value + 1)))
        elif type(node.value) is float:
            self.found.append((*self.span(node), repr(1.01 * node.value if node.value else 1.0)))

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        start = self.span(node)[0]
        if isinstance(node.op, ast.USub | ast.Invert) and not isinstance(node.operand, ast.Constant):
            self.found.append((start, start + 1, "+" if isinstance(node.op, ast.USub) else ""))
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        texts = (ast.JoinedStr, ast.Constant)
        if not any(isinstance(v, texts) and not _is_number(v) for v in (node.left, node.right)):
            self.between(node.left, node.right, node.op)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        self.between(node.values[0], node.values[1], node.op)
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        for left, op, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
            self.between(left, right, op)
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.between(node.target, node.value, node.op, "=")
        self.visit(node.value)

    def visit_Call(self, node: ast.Call) -> None:
        name = ast.unparse(node.func)
        if name.endswith("warn"):
            return  # a text
        if name.endswith("where") and len(node.args) == 3:
            (a, b), (c, d) = (self.span(v) for v in node.args[1:])
            self.found.append((a, d, self.source[c:d] + self.source[b:c] + self.source[a:b]))
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        if "__all__" not in [getattr(target, "id", None) for target in node.targets]:
            self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for part in (*node.args.defaults, *node.args.kw_defaults, *node.body):  # no decorators, no annotations
            if part is not None:
                self.visit(part)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for part in node.body:
            self.visit(part)

    def visit_Assert(self, node: ast.Assert) -> None:
        pass  # for the type checker

    def visit_Raise(self, node: ast.Raise) -> None:
        pass  # a text

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        pass  # a text


def _is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float)


def mutations_of(file: str) -> list[Mutation]:
    """Every mutation of a file that still parses."""
    source = (ROOT / file).read_text()
    sites = Sites(source)
    sites.visit(ast.parse(source))
    found = [Mutation(file, *site, source) for site in sites.found]
    for mutation in found:
        ast.parse(mutation.mutated)
    return found


def chosen(count: int, seed: int) -> Iterator[Mutation]:
    """Draw a file, then one of its mutations, without replacement."""
    rng = random.Random(seed)
    files = sorted(str(path.relative_to(ROOT)) for pattern in FILES for path in ROOT.glob(pattern))
    left = {file: found for file in files if (found := mutations_of(file))}
    for _ in range(count):
        file = rng.choice(list(left))
        yield left[file].pop(rng.randrange(len(left[file])))
        left = {file: found for file, found in left.items() if found}


def copy_of_checkout(folder: Path) -> None:
    """Copy what the tests need; ``kernels`` also to where it is installed, inside the package."""
    skip = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "out")
    shutil.copytree(ROOT, folder, ignore=skip, dirs_exist_ok=True)
    shutil.copytree(ROOT / "kernels", folder / "fastscore/kernels", ignore=skip)
    if (ROOT / ".ci").is_dir():
        shutil.copytree(ROOT / ".ci", folder / ".ci")


def failing(folder: Path, *arguments: str) -> tuple[list[str], str]:
    """Run tests in the copy; return the ids of those that fail, and the end of the output."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "XDG_CACHE_HOME": str(folder / "cache")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1200)
    except subprocess.TimeoutExpired:
        return [f"no end after 1200 s: {' '.join(arguments)}"], ""
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if done.returncode and not failed:
        failed = [f"pytest ended with status {done.returncode}"]
    return failed, done.stdout[-2000:] + done.stderr[-2000:]


def killer(folder: Path, mutation: Mutation, deselected: list[str]) -> str | None:
    """Return the first test that fails on a mutation, None if all pass."""
    installed = folder / (f"fastscore/{mutation.file}" if mutation.file.startswith("kernels/") else mutation.file)
    parts = Path(mutation.file).parts
    first = [path for path in FIRST[parts[1] if parts[0] == "fastscore" else "kernels"] if (folder / path).exists()]
    installed.write_text(mutation.mutated)
    try:
        for paths in (first, ["tests", *(f"--ignore={path}" for path in first)]):
            failed, _ = failing(folder, "-x", *paths, *deselected)
            if failed:
                return failed[0]
    finally:
        installed.write_text(mutation.source)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=30, help="number of mutations")
    parser.add_argument("--seed", type=int, default=0, help="of their choice")
    parser.add_argument("--list", action="store_true", help="print the mutations and run nothing")
    options = parser.parse_args()
    mutations = list(chosen(options.count, options.seed))
    if options.list:
        for m in mutations:
            print(f"{m.file}:{m.line}: {m.before} -> {m.after}   in {m.text}")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_of_checkout(folder)
        broken, output = failing(folder)
        if any("::" not in test for test in broken):
            sys.exit(f"the tests do not run on an unchanged copy:\n{output}")
        print(f"unchanged: {len(broken)} tests fail and are left out {broken or ''}", flush=True)
        deselected = [f"--deselect={test}" for test in broken]
        killed, survivors = 0, 0
        for k, m in enumerate(mutations, 1):
            start = time.perf_counter()
            reason = EQUIVALENT.get((m.file, m.text, m.before, m.after))
            test = None if reason else killer(folder, m, deselected)
            verdict = f"killed by {test}" if test else f"equivalent: {reason}" if reason else "SURVIVED"
            killed, survivors = killed + bool(test), survivors + (not test and not reason)
            print(f"{k:3d} {m.file}:{m.line}: {m.before} -> {m.after}   in {m.text}", flush=True)
            print(f"    {verdict} ({time.perf_counter() - start:.0f} s)", flush=True)
    print(f"{killed} of {len(mutations)} turned the suite red")
    sys.exit(1 if survivors else 0)


if __name__ == "__main__":
    main()
