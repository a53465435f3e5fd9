"""Tables from records; nobody types a number by hand.

    python bench/report.py      writes bench/results/ops.md and peers.md, and the peers of README.md, from *.jsonl

Of each case on each device the latest record counts. In README.md a table stands between <!-- peers --> and
<!-- /peers -->, or bench for samplers; without them it is left alone.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run by its path, not as a module
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench.common import COMPILED, COPY, EAGER, OURS
from bench.peers import tables as peer_tables
from bench.records import RESULTS, ROOT, between, load, publish

Record = Mapping[str, Any]


def headline(env: Mapping[str, Any]) -> str:
    """Return the line that stands next to every figure: hardware, versions, commit."""
    parts = [env["device"]]
    if env["type"] == "cuda":
        limit = env["power_limit_w"]
        parts += [f"power limit {limit:.0f} W" if limit else "power limit unknown", f"CUDA {env['cuda']}"]
        parts.append(f"triton {env['triton']}")
        parts += [f"TF32 {name} {'on' if enabled else 'off'}" for name, enabled in env["tf32"].items()]
    parts += [f"{env['threads']} thread{'s' * (env['threads'] > 1)}", f"torch {env['torch']}"]
    parts.append(f"commit {env['git'] or 'unknown'}{' with uncommitted changes' if env['dirty'] else ''}")
    load = f"load {env['load']:.1f}" if env["load"] is not None else ""
    return ", ".join([*parts, *filter(None, [load]), env["date"][:10]])


def text(record: Record) -> str:
    """Return what the console shows of one record; losses are said as plainly as gains."""
    lines = [f"{record['bench']}: {record['case']}"]
    if "red" in record:
        return f"RED  {record['red']}"
    for name, seconds in record["seconds"].items():
        line = (
            f"  {name:28s}{duration(seconds['p50']):>10s}  ({duration(seconds['p20'])} .. {duration(seconds['p80'])})"
        )
        if name == OURS and "bandwidth" in record:
            b = record["bandwidth"]
            line += f"  {b['gb_per_s']:.1f} GB/s, {b['percent_of_copy']:.0f} % of a copy's"
        lines.append(line)
    lines += [f"  {name:28s}   skipped: {reason}" for name, reason in record["skipped"].items()]
    for r in record["ratios"]:
        verdict = "faster" if r["p20"] > 1.0 else "SLOWER" if r["p80"] < 1.0 else "no clear difference"
        times = f"{r['p50']:.2f} ({r['p20']:.2f} .. {r['p80']:.2f})"
        lines.append(f"  {r['of']} has {times} times the speed of {r['over']}: {verdict}")
    for mode, share in record["derived"].get("shares", {}).items():
        lines.append(f"  {mode}: " + ", ".join(f"{name} {value:.0%}" for name, value in share.items()))
    for name, value in record["derived"].get("ms_per_step", {}).items():
        lines.append(f"  {name} {value:.3f} ms a step")
    for name, value in record["derived"].get("outside_ms_per_step", {}).items():
        lines.append(f"  outside the network: {name} {value:.3f} ms a step")
    return "\n".join(lines)


def latest(records: Iterable[Record]) -> list[Record]:
    """Keep the last record of each case on each device, without quick ones."""
    newest = {(r["env"]["device"], r["bench"], r["case"]): r for r in records if not r.get("quick")}
    return list(newest.values())


def recorded() -> list[Record]:
    """Return the records that count, of every file."""
    loaded = (r for file in sorted(RESULTS.glob("*.jsonl")) for r in load(file))
    return latest(r for r in loaded if "case" in r)  # studies keep records of another kind


def tables(records: Sequence[Record], ops: bool = True) -> str:
    """Return markdown: for each device its hardware line and tables."""
    parts = []
    for device in dict.fromkeys(r["env"]["device"] for r in records):
        on_device = [r for r in records if r["env"]["device"] == device]
        sampled = [r for r in on_device if r["bench"] == "sampler"]
        single = [r for r in on_device if r["bench"] not in ("sampler", *peer_tables.BENCHES)] if ops else []
        if not sampled and not single:
            continue
        lines = list(dict.fromkeys(headline(r["env"]) for r in [*sampled, *single]))
        note = "" if on_device[0]["env"]["type"] == "cuda" else "CPU figures: they say nothing about a GPU.  "
        quick = "**Quick run: these figures mean nothing.**  " if any(r.get("quick") for r in on_device) else ""
        parts.append("\n".join([f"**{device}**", "", note + quick + "  ".join(lines) + "."]))
        parts += [_ops_table(single)] if single else []
        parts += [_sampler_table(r) for r in sampled]
    return "\n\n".join(parts)


def against_peers(records: Sequence[Record], table: Callable[[Sequence[Record], str], str] = peer_tables.tables) -> str:
    """Return the tables against other samplers, for each device."""
    records = [r for r in records if r["bench"] in peer_tables.BENCHES]
    parts = []
    for device in dict.fromkeys(r["env"]["device"] for r in records):
        on_device = [r for r in records if r["env"]["device"] == device]
        quick = "**Quick run: these figures mean nothing.**  " if any(r.get("quick") for r in on_device) else ""
        parts.append(table(on_device, quick + headline(on_device[-1]["env"])))
    return "\n\n".join(parts)


def _ops_table(records: Sequence[Record]) -> str:
    head = [
        "operation",
        "case",
        "backend",
        OURS,
        EAGER,
        COMPILED,
        "copy",
        "x eager",
        "x torch.compile",
        "GB/s",
        "of a copy",
    ]
    rows = []
    for r in records:
        if "red" in r:
            rows.append([r["bench"], r["case"], "", "**wrong result, not timed**", *[""] * 7])
            continue
        times = [duration(r["seconds"][w]["p50"]) if w in r["seconds"] else "" for w in (OURS, EAGER, COMPILED, COPY)]
        if OURS in r["skipped"]:
            times[0] = f"skipped: {r['skipped'][OURS]}"
        ratios = [_ratio(r, OURS, base) for base in (EAGER, COMPILED)]
        b = r.get("bandwidth")
        speed = [f"{b['gb_per_s']:.1f}", f"{b['percent_of_copy']:.0f} %"] if b else ["", ""]
        rows.append([r["bench"], r["case"], r["facts"].get("backend", ""), *times, *ratios, *speed])
    note = "Medians; ratios are medians of paired rounds, above 1 where fastscore is faster."
    means = []
    for base in (EAGER, COMPILED):
        ratios = [x["p50"] for r in records for x in r.get("ratios", ()) if x["over"] == base]
        if len(ratios) > 1:
            means.append(f"{math.exp(sum(map(math.log, ratios)) / len(ratios)):.2f} x {base}")
    if means:
        note += f" Geometric mean of all rows: {', '.join(means)}."
    return f"{_table(head, rows)}\n\n{note}"


def _sampler_table(r: Record) -> str:
    if "red" in r:
        return f"{r['case']}: **wrong result, not timed**"
    head = ["run", "samples/s", "p20 .. p80", "x eager", "x compiled", "net", "update", "gap", "outside, ms a step",
            "ready after", "J a sample"]  # fmt: skip
    rows, derived = [], r["derived"]
    for name, rate in derived["rates"].items():
        mode = name.partition(", ")[2]
        seconds, share = r["seconds"][name], derived["shares"].get(mode) if name.startswith("fastscore") else None
        ends = [r["items"]["count"] / seconds[p] for p in ("p80", "p20")]
        around = derived["outside_ms_per_step"].get(name, derived["outside_ms_per_step"].get(name.split(",")[0]))
        prepared = r["facts"]["prepare"].get(mode, {}) if name.startswith("fastscore") else {}
        startup = f"{prepared['first_s'] + prepared['capture_s']:.1f} s" if prepared else ""
        energy = r["cost"].get(name, {}).get("energy_per_item", {}).get("value")
        rows.append([
            name,
            f"{rate['samples_per_s']:.4g}",
            f"{ends[0]:.4g} .. {ends[1]:.4g}",
            *(_ratio(r, name, f"published, {kind}") for kind in ("eager", "compiled")),
            *(f"{share[k]:.0%}" if share else "" for k in ("net", "update", "gap")),
            f"{around:.3f}" if around is not None else "",
            startup,
            f"{energy:.3g}" if energy else "",
        ])  # fmt: skip
    rows += [[name, f"skipped: {reason}", *[""] * 9] for name, reason in r["skipped"].items()]
    return f"{r['case']}, float32, backend {r['facts']['backend']}:\n\n{_table(head, rows)}"


def _ratio(r: Record, name: str, base: str) -> str:
    return next((f"{x['p50']:.2f}" for x in r["ratios"] if (x["of"], x["over"]) == (name, base)), "")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def duration(seconds: float) -> str:
    """Return seconds in a unit that reads well."""
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if seconds * factor >= 1.0:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def main() -> int:
    """Write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    records = recorded()
    if not records:
        print(f"no records in {RESULTS}; run python bench/run.py first")
        return 1
    publish("ops", "Operations and samplers", tables(records))
    publish("peers", "Other samplers", against_peers(records))
    readme = ROOT / "README.md"
    text = between(readme.read_text(), "bench", tables(records, ops=False))
    readme.write_text(between(text, "peers", against_peers(records, peer_tables.summary)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
