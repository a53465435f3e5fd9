"""DIR/summary.md from DIR/records.jsonl: what ran, what failed, and every figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.card.lines import END, load
from bench.card.plan import Phase

HIDDEN = ("phase", "item", "ok", "dry", "trace")


def write(out: Path, phases: Sequence[Phase]) -> str:
    """Write the summary; return it."""
    records = load(out)
    ends = {r["phase"]: r for r in records if r["item"] == END}
    failed = [r for r in records if r["ok"] is False and r["item"] != END]
    dry = any(r.get("dry") for r in records)
    lines = ["# First run on a card" + (": a dry run on a CPU, whose figures mean nothing" if dry else ""), ""]
    lines += ["| phase | answers | ended | seconds | results | failed |", "|---|---|---|---|---|---|"]
    for phase in phases:
        end = ends.get(phase.name)
        count = sum(r["phase"] == phase.name and r["item"] != END for r in records)
        bad = sum(r["phase"] == phase.name for r in failed)
        took, how = (f"{end['seconds']:.0f}", end["ended"]) if end else ("", "not run, or still running")
        lines.append(f"| {phase.name} | {phase.answers} | {how} | {took} | {count} | {bad} |")
    if failed:
        lines += ["", "## Failed", ""]
        lines += [f"- {r['phase']} {r['item']}: {cell(r.get('error') or facts(r))}" for r in failed]
    for phase in phases:
        own = [r for r in records if r["phase"] == phase.name and r["item"] != END]
        if own:
            lines += ["", f"## {phase.name}: {phase.answers}", "", "| item | ok | figures |", "|---|---|---|"]
            words = {True: "yes", False: "**no**", None: ""}
            lines += [f"| {cell(r['item'])} | {words[r['ok']]} | {cell(facts(r))} |" for r in own]
    text = "\n".join(lines) + "\n"
    target = out / "summary.md"
    half = target.with_name(".summary")  # a summary is replaced whole
    half.write_text(text)
    half.replace(target)
    return text


def facts(record: Mapping[str, Any]) -> str:
    """Return what a record says, in one line."""
    return ", ".join(f"{k} {plain(v)}" for k, v in record.items() if k not in HIDDEN and v is not None)


def plain(value: Any) -> str:
    """Return a value with the digits that matter."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k} {plain(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(plain, value)) + "]"
    return str(value)


def cell(text: str) -> str:
    """Return text that fits in one cell of a table."""
    return text.replace("|", "/").replace("\n", " ")[:1500]
