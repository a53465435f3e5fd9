"""Tables of the comparison with other samplers, from its records."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from bench.common import OURS

Record = Mapping[str, Any]
BENCHES = ("peers", "outside", "points")
PEER = "peer"
SHORT = (  # bench, library, solver: the rows of README.md, a loss among them
    ("peers", "diffusers", "DPM++ 2M"),
    ("peers", "k-diffusion", "Heun"),
    ("peers", "azula", "DDIM"),
    ("peers", "score_sde", "PC, Langevin"),
    ("points", "torchdiffeq", "midpoint"),
)


def summary(records: Sequence[Record], headline: str) -> str:
    """Return the README's markdown: the rows of SHORT, and in words what falls short of its peer."""
    passed = [r for r in records if "red" not in r and PEER not in r["skipped"]]
    around = [r for r in passed if r["bench"] == "peers"]
    rows = [_short(r) for bench, library, solver in SHORT for r in passed if _is(r, bench, library, solver)]
    if not around or not rows:
        return ""
    firsts = [x["p50"] for r in around for x in r["ratios"] if x["of"] == f"first sample: {OURS}"]
    slower = sum(ratio < 1.0 for ratio in firsts)
    failed = dict.fromkeys(", ".join(r["case"].split(", ")[:2]) for r in records if "red" in r)
    facts = around[0]["facts"]
    text = (
        f"Speed over other samplers around one network (`{facts['network']}`, batch {facts['batch']}), at equal "
        f"evaluations. {headline}. Medians of paired, alternating runs, with their 20th and 80th percentiles; by "
        "`python bench/run.py peers`. In float32 everyone takes the network's time; the factor is bf16, checked "
        f"to 1 % of the score, and compiling ahead of time. Not faster: a first sample, in {slower} of {len(firsts)} "
        f"cases ({min(firsts):.2f} to {max(firsts):.2f} times the peer's speed, batch 1), and the last row."
    )
    if failed:
        text += f" Failed its check, so not timed: {'; '.join(failed)}."
    text += " All figures: [`bench/README.md`](bench/README.md#peers)."
    head = ["peer and its solver", "float32, both eager", "float32, both compiled",
            '`network="auto"`, peer compiled in float32']  # fmt: skip
    return f"{textwrap.fill(text, 120, break_on_hyphens=False, break_long_words=False)}\n\n{_table(head, rows)}"


def _short(r: Record) -> list[str]:
    if r["bench"] == "points":
        ratios = [_ratio(r, [OURS], f"{PEER}, chunks"), "", ""]
    else:
        pairs = (("eager", "eager"), ("compiled", "compiled"), ("network auto", "compiled"))
        ratios = [_ratio(r, [f"{OURS}, {ours}"], f"{PEER}, {peer}") for ours, peer in pairs]
    points = f", {r['facts']['points']:,} points" if r["bench"] == "points" else ""
    return [f"{r['facts']['library']}, {r['facts']['solver']}{points}", *ratios]


def _is(r: Record, bench: str, library: str, solver: str) -> bool:
    return r["bench"] == bench and (r["facts"]["library"].split()[0], r["facts"]["solver"]) == (library, solver)


def tables(records: Sequence[Record], headline: str) -> str:
    """Return markdown: around the network, outside it, on points; a peer that is not installed is named."""
    by = {bench: [r for r in records if r["bench"] == bench] for bench in BENCHES}
    parts = [f"{headline}. Medians of paired, alternating runs; ratios with their 20th and 80th percentiles."]
    missing = [f"{r['case']}: {r['skipped'][PEER]}" for r in by["peers"] if PEER in r.get("skipped", ())]
    for r in records:
        if "red" in r:
            missing.append(f"{r['case']}: {r['red'].partition('wrong ')[2]}")  # (check: error, bound)
    passed = {bench: [r for r in rs if "red" not in r and PEER not in r["skipped"]] for bench, rs in by.items()}
    for bench, make in (("peers", _around), ("outside", _outside), ("points", _points)):
        if passed[bench]:
            parts.append(make(passed[bench]))
    return "\n\n".join([*parts, *(f"Not measured: {line}." for line in missing)])


def _around(records: Sequence[Record]) -> str:
    first = records[0]["facts"]
    names = [w for r in records for w in r["derived"]["samples_per_s"]]
    names = list(dict.fromkeys(names))
    head = ["peer", "solver", "evaluations", *(f"{w}, samples/s" for w in names), "x peer, eager", "x peer, compiled",
            "first sample, ms (fastscore / peer)", "minus network, ms a step (fastscore / peer)"]  # fmt: skip
    rows = []
    for r in records:
        rates, facts = r["derived"]["samples_per_s"], r["facts"]
        speedups = [
            _ratio(r, [w for w in rates if w.startswith(OURS)], f"{PEER}, {net}") for net in ("eager", "compiled")
        ]
        firsts = [1000.0 * r["seconds"][f"first sample: {side}"]["p50"] for side in (OURS, PEER)]
        overhead = r["derived"]["subtracted_ms_per_step"]
        rows.append([
            facts["library"], facts["solver"], str(facts["nfe"]),
            *(f"{rates[w]:.3g}" if w in rates else "" for w in names), *speedups,
            " / ".join(f"{v:.3g}" for v in firsts), f"{overhead[OURS]:.2g} / {overhead[PEER]:.2g}",
        ])  # fmt: skip
    text = (
        f"Around the network {first['network']} (sha256 {first['weights_sha256']}), float32, batch {first['batch']}, "
        "equal evaluations. The ratios are fastscore's fastest mode over the peer's. First sample: batch 1, eager, "
        "with fastscore's plan and buffers made in it, the peer's scheduler ready before. The last column is a "
        "difference of two large times and says little; the next table measures it."
    )
    return f"{text}\n\n{_table(head, rows)}"


def _outside(records: Sequence[Record]) -> str:
    head = ["peer", "solver", "fastscore, ms a step", "peer, ms a step", "p20 .. p80", "x peer"]
    rows = []
    for r in records:
        times, facts = r["derived"]["ms_per_step"], r["facts"]
        ends = [1000.0 * r["seconds"][OURS][p] / facts["steps"] for p in ("p20", "p80")]
        theirs = [1000.0 * r["seconds"][PEER][p] / facts["steps"] for p in ("p20", "p80")]
        spreads = f"{ends[0]:.3f} .. {ends[1]:.3f} / {theirs[0]:.3f} .. {theirs[1]:.3f}"
        rows.append([facts["library"], facts["solver"], f"{times[OURS]:.3f}", f"{times[PEER]:.3f}", spreads,
                     _ratio(r, [OURS], PEER)])  # fmt: skip
    text = f"Outside the network: the model returns a constant, {records[0]['facts']['shape']}, everything else runs."
    return f"{text}\n\n{_table(head, rows)}"


def _points(records: Sequence[Record]) -> str:
    head = ["peer", "solver", "evaluations", "fastscore, samples/s", "peer at once", "peer in chunks", "x at once",
            "x chunks", "peak memory, MiB (fastscore / at once / chunks)"]  # fmt: skip
    rows = []
    for r in records:
        rates, facts = r["derived"]["samples_per_s"], r["facts"]
        names = (OURS, f"{PEER}, at once", f"{PEER}, chunks")
        peaks = [r["cost"][w].get("peak_resident", {}).get("value") for w in names]
        memory = " / ".join("unknown" if p is None else f"{p:.0f}" for p in peaks)
        rows.append([
            facts["library"], facts["solver"], str(facts["nfe"]), *(f"{rates[w]:.3g}" for w in names),
            *(_ratio(r, [OURS], w) for w in names[1:]), memory,
        ])  # fmt: skip
    facts = records[0]["facts"]
    text = (
        f"{facts['points']:,} points of a two-dimensional mixture with its exact score; fastscore at batch "
        f"{facts['chunk']}, the peer at once and {facts['chunk']} at a time. Memory is the whole process's."
    )
    return f"{text}\n\n{_table(head, rows)}"


def _ratio(r: Record, names: Sequence[str], base: str) -> str:
    ratios = [x for x in r["ratios"] if x["of"] in names and x["over"] == base]
    if not ratios:
        return ""
    best = max(ratios, key=lambda x: x["p50"])
    return f"{best['p50']:.2f} ({best['p20']:.2f} .. {best['p80']:.2f})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])
