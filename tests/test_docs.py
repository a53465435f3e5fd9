"""The pages of fastscore/docs: the tests that they name exist, what is generated is fresh, and they can be read."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import commands

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "fastscore/docs"


@cache
def defined(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_named_tests_exist():
    for page in DOCS.glob("*.md"):
        for path, name in re.findall(r"(tests/[\w/]+\.py)::(\w+)", page.read_text()):
            assert (ROOT / path).is_file(), f"{page.name} names {path}, which is not there"
            assert name in defined(path), f"{page.name} names {path}::{name}, which is not there"


def test_every_question_names_a_test():
    answers = (DOCS / "FAQ.md").read_text().split("\n### ")[1:]
    assert len(answers) >= 20
    for answer in answers:
        assert re.search(r"tests/[\w/]+\.py::test_\w+", answer), answer.splitlines()[0]


def test_the_commands_are_what_help_prints():
    assert commands.PAGE.read_text() == commands.page(), (
        "fastscore/docs/COMMANDS.md is not what --help prints now: python tests/oracles/commands.py makes it again"
    )


def test_pages_are_short_and_in_the_index():
    index = (DOCS / "README.md").read_text()
    for page in set(DOCS.glob("*.md")) - {commands.PAGE, DOCS / "GALLERY.md"}:  # which scripts write
        text = page.read_text()
        assert page.name == "README.md" or f"]({page.name})" in index, page.name
        assert text.count("\n") <= 200, page.name
        prose = re.sub(r"^```math.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        assert not [x for x in prose.splitlines() if len(x) > 120 and not x.startswith(("|", "-", "fastscore"))], (
            page.name
        )


def test_mathematics_survives_markdown():
    """Inline: a backslash before punctuation is Markdown's own, and is gone before it is mathematics."""
    for page in DOCS.glob("*.md"):
        text = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        for formula in re.findall(r"\$[^$]+\$", text):
            assert not re.search(r"\\[^a-zA-Z]", formula) and "\n" not in formula, (page.name, formula)


def test_figures_of_solvers_are_those_of_the_results():
    """Each number of three digits in a section stands in a file of bench/results that the section names."""
    sections, seen = (DOCS / "SOLVERS.md").read_text().split("\n## ")[1:], 0
    for section in sections:
        text = re.sub(r"^```.*?^```|`[^`\n]*`", "", section, flags=re.DOTALL | re.MULTILINE)
        named = re.findall(r"bench/results/([\w-]+\.md)", text)
        figures = re.findall(r"(?<![\w.])\d+\.\d{2,}(?![\w.]*\d)", text)
        results = "".join((ROOT / "bench/results" / name).read_text() for name in named)
        for figure in figures:
            assert figure in results, (section.splitlines()[0], figure, named)
        seen += len(figures)
    assert seen > 25
