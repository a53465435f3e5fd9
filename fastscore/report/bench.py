"""The page of a bench: whatever its records hold, as tables of medians and, where there is an axis, charts.

Nothing here knows a bench by name. Columns that never change are facts; words, switches and sizes that do are keys;
other numbers are measures: rows with the same keys give the median, with its 20th and 80th percentile.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastscore.data.limits import regular_file
from fastscore.report.chart import LARGEST
from fastscore.report.page import Chart, Facts, Part, Section, Table, words

LONGEST = 1 << 26  # bytes of a file of records
ROWS, SERIES, FACTS = 400, 8, 40  # that are shown
AXES = ("budget", "nfe", "evaluations", "steps", "batch", "value", "ids", "images", "workers", "threads", "n", "num")
REPEATS = ("seed", "date", "repeat", "repeats", "runs")  # what tells one record of a case from another
SPREAD = ("p50", "p20", "p80")
Row = dict[str, Any]
Tables = dict[str, list[Row]]


def bench_page(path: Path) -> tuple[str, str, list[Section]]:
    """Return the title, the text and the sections of a page about the records in a file.

    Args:
        path: JSON lines, or JSON: a list of objects, or one.

    Raises:
        ValueError: the file is not there, is no JSON, or holds no records.
    """
    records = _records(path)
    benches: dict[str, Tables] = {}
    for record in records:
        name = str(record.get("bench", path.stem))
        _split(name, record, {}, benches.setdefault(name, {}))
    sections = [Section(name, "", _ordered(tables)) for name, tables in benches.items()]
    env = next((record["env"] for record in reversed(records) if isinstance(record.get("env"), Mapping)), None)
    if env:
        sections.append(Section("Environment", "Of the last record.", [Facts(dict(_flat(env)))]))
    text = f"{len(records):,} records. Values are medians, with the 20th and 80th percentile where there are several."
    return f"Records of {path.stem}", text, sections


def _records(path: Path) -> list[Mapping[str, Any]]:
    if regular_file(path).stat().st_size > LONGEST:
        raise ValueError(f"{path} has more than {LONGEST:,} bytes; split it")
    try:
        text = path.read_text(encoding="utf-8")
        found = (
            [json.loads(line) for line in text.splitlines() if line.strip()]
            if path.suffix == ".jsonl"
            else [json.loads(text)]
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no {path.suffix[1:].upper()} of records: {error}") from None
    if len(found) == 1 and isinstance(found[0], list):
        found = found[0]
    if len(found) == 1 and isinstance(found[0], Mapping) and isinstance(found[0].get("benchmarks"), list):
        found = found[0]["benchmarks"]  # of pytest-benchmark
    if not found or not all(isinstance(record, Mapping) for record in found):
        raise ValueError(f"{path} holds no records: JSON objects, one a line, or a list of them")
    return found


def _split(name: str, record: Mapping[str, Any], above: Row, tables: Tables) -> None:
    """Put a record into the table of its name, and what it holds many of into tables of their own."""
    plain, many = dict[str, Any](), dict[str, list[Row]]()
    for key, value in record.items():
        if key in ("schema", "env", "bench"):
            continue
        if isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
            many[key] = [dict(v) for v in value]
        elif isinstance(value, Mapping) and value and all(isinstance(v, Mapping) for v in value.values()):
            many[key] = [{"of": k, **v} for k, v in value.items()]
        elif isinstance(value, Mapping) and value and all(isinstance(v, list) for v in value.values()):
            many |= {f"{key} {k}": [dict(v) for v in vs if isinstance(v, Mapping)] for k, vs in value.items()}
        else:
            plain |= dict(_flat({key: value}))
    words = above | {k: v for k, v in record.items() if k in plain and isinstance(v, str) and k not in REPEATS}
    if plain:
        row, title, others = above | plain, name, 1
        while title in tables and len(row.keys() & tables[title][0].keys()) < len(row) / 2:  # of another kind
            others += 1
            title = f"{name}, {others}"
        tables.setdefault(title, []).append(row)
    for key, rows in many.items():
        for row in rows:
            _split(f"{name}: {key}", row, words, tables)


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield plain values by their path; of a list of a few words or numbers each, of a longer one its length."""
    for key, value in values.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        elif isinstance(value, list) and 0 < len(value) < 5 and all(type(v) is int for v in value):
            yield name, " x ".join(map(str, value))
        elif isinstance(value, list):
            if len(value) > 8 or any(isinstance(v, list | Mapping) for v in value):
                yield name, f"{len(value)} values"
            else:
                yield from ((f"{name} {k + 1}", v) for k, v in enumerate(value))
        else:
            yield name, value


def _ordered(tables: Tables) -> list[Part]:
    """Return the parts of tables, those with spreads first, which is what a bench is for."""
    rank = sorted(tables, key=lambda name: not any(column.endswith(SPREAD[0]) for column in tables[name][0]))
    return [part for name in rank for part in _parts(name, tables[name])]


def _parts(name: str, rows: Sequence[Row]) -> Iterator[Part]:
    """Yield facts, chart and table of rows."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    values = {column: [row.get(column) for row in rows] for column in columns}
    told = {k: v for k, v in values.items() if not k.endswith(SPREAD)} if len(rows) > 1 else {}
    still = {k: v[0] for k, v in told.items() if all(x == v[0] for x in v)}
    values = {k: v for k, v in values.items() if k not in still and any(x is not None for x in v)}
    values = {k: v for k, v in values.items() if not all(_is_hash(x) for x in v if x is not None)}
    keys = [k for k, v in values.items() if k not in REPEATS and _is_key(k, v)]
    measures = [k for k, v in values.items() if k not in keys and k not in REPEATS and _is_measure(v)]
    if facts := {k: v for k, v in still.items() if v is not None and not _is_hash(v)}:
        yield Facts(dict(list(facts.items())[:FACTS]))
    groups: dict[tuple[Any, ...], list[int]] = {}
    for k in range(len(rows)):
        groups.setdefault(tuple(values[key][k] for key in keys), []).append(k)
    spreads = [m for m in measures if m.endswith(SPREAD[0]) and all(m[:-3] + p in measures for p in SPREAD)]
    covered = {m[:-3] + p for m in spreads for p in SPREAD[1:]}
    measures = [m for m in measures if m not in covered]
    if not measures and not keys:
        return
    yield from _charts(name, keys, measures, values, groups)
    lines = [[*key, *(_cell(m, at, values, m in spreads) for m in measures)] for key, at in list(groups.items())[:ROWS]]
    left = f"; the first {ROWS} of {len(groups):,} lines" if len(groups) > ROWS else ""
    head = [*keys, *(m.removesuffix(".p50").replace("p50", "median") if m in spreads else m for m in measures)]
    yield Table(head, lines, f"{name}: {len(rows):,} records{left}")


def _cell(measure: str, at: Sequence[int], values: Mapping[str, Sequence[Any]], spread: bool) -> Any:
    """Return a median, with its spread if there is one."""
    known = [float(values[measure][k]) for k in at if _is_number(values[measure][k])]
    if not known:
        return next((values[measure][k] for k in at if values[measure][k] is not None), "")
    middle = float(np.median(known))
    if len(known) > 1:
        low, high = np.quantile(known, [0.2, 0.8]).tolist()
    elif spread:
        low, high = (values[measure[:-3] + p][at[0]] for p in SPREAD[1:])
    else:
        return middle
    return f"{words(middle)} ({words(low)} .. {words(high)})"


def _charts(
    name: str,
    keys: Sequence[str],
    measures: Sequence[str],
    values: Mapping[str, Sequence[Any]],
    groups: Mapping[tuple[Any, ...], Sequence[int]],
) -> Iterator[Chart]:
    """Yield charts of the first measure over the axis, if there is one, a line for each of the other keys' values."""
    axis = next((k for k in AXES if k in keys and len({v for v in values[k] if _is_number(v)}) > 2), None)
    if axis is None or not measures:
        return
    measure = next((m for m in measures if re.search("error|fid|p50|seconds", m)), measures[0])
    others = [k for k in keys if k != axis and k not in AXES]
    counts = {k: len(set(map(str, values[k]))) for k in others}
    facet = min((k for k in others if counts[k] < 5), key=counts.__getitem__, default=None) if len(others) > 1 else None
    faces: dict[Any, dict[str, list[tuple[float, float]]]] = {}
    for key, at in groups.items():
        told = dict(zip(keys, key, strict=True))
        y = [float(values[measure][k]) for k in at if _is_number(values[measure][k])]
        if _is_number(told[axis]) and y:
            line = ", ".join(words(told[k]) for k in others if k != facet) or measure
            line_points = faces.setdefault(told[facet] if facet else None, {}).setdefault(line, [])
            line_points.append((float(told[axis]), float(np.median(y))))
    for face, lines in faces.items():
        longest = sorted(lines, key=lambda k: (-len(lines[k]), min(y for _, y in lines[k])))
        series = {k: tuple(np.array(sorted(lines[k])).T) for k in longest[:SERIES] if len(lines[k]) > 1}
        if not series:
            continue
        where = f" where {facet} is {words(face)}" if facet else ""
        some = (
            f" {len(series)} of {len(lines)} lines, the longest and then the lowest."
            if len(lines) > len(series)
            else ""
        )
        wide = [
            all(np.all(s[k] > 0) for s in series.values()) and _ratio([s[k] for s in series.values()]) > 20
            for k in (0, 1)
        ]
        yield Chart(series, axis, measure, wide[0], wide[1], text=f"{name}: {measure} over {axis}{where}.{some}")


def _ratio(parts: Sequence[Any]) -> float:
    joined = np.concatenate(parts)
    return float(joined.max() / joined.min())


def _is_number(value: Any) -> bool:
    """Return whether a value is a number that can be drawn: no NaN, and none that a float does not hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST < value < LARGEST


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{16,}", value) is not None


def _is_measure(values: Sequence[Any]) -> bool:
    return any(map(_is_number, values))


def _is_key(name: str, values: Sequence[Any]) -> bool:
    """Return whether a column tells cases apart: words, switches, sizes, and whole numbers that come again."""
    known = [v for v in values if v is not None]
    if name in AXES or not all(map(_is_number, known)):
        return True
    return all(isinstance(v, int) for v in known) and len(set(known)) < len(known) / 2
