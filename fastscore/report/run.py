"""The page of a run: its samples, their way from noise, the plan that made them, what it took, and how to repeat it."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastscore.data.limits import regular_file
from fastscore.output.pictures import SHEET
from fastscore.output.record import FILES
from fastscore.process.schedule import Schedule
from fastscore.report.opened import Drawn, Run, array, first_samples, open_run, read_json
from fastscore.report.page import Code, Facts, Part, Picture, Section, Table
from fastscore.report.samples import sample_parts, step_chart, way_parts
from fastscore.report.schedule import plan_parts, schedule_charts, schedule_of

QUALITY = "quality.json"
HASHED = 1 << 30  # bytes of a file up to which its sha256 is taken
LONGEST = 1 << 20  # bytes of a file of metrics or figures


def run_page(run: Run, drawn: Drawn) -> tuple[str, str, list[Section]]:
    """Return the title, the text and the sections of a run's page.

    Raises:
        ValueError: its samples cannot be read.
    """
    record = run.record
    schedule = drawn.schedule or schedule_of(str(_told(run, "schedule")))
    settings = _part(record, "settings")
    model = (
        settings.get("model")
        or settings.get("target")
        or (run.manifest and run.manifest.argv and run.manifest.argv[1])
        or "a model"
    )
    count = run.manifest.n if run.manifest else settings.get("num", "")
    shards, samples, labels = first_samples(run)
    nfe = record.get("nfe") or (drawn.plan.nfe if drawn.plan else None)
    kinds = [str(_told(run, name)).split("(")[0] for name in ("solver", "schedule")]
    how = (
        f"by {kinds[0]} on {kinds[1]}{f' in {nfe} evaluations each' if nfe else ''}, " if "unknown" not in kinds else ""
    )
    text = f"Drawn {how}seed {_told(run, 'seed')}."
    title = f"{count:,} samples of {model}" if isinstance(count, int) else f"Samples of {model}"
    sections = [
        Section("Samples", shards, [*_shown(run, samples, str(model)), *_classes(record, labels)]),
        _way(run, schedule),
        _schedule(drawn, schedule),
        _plan(run, drawn),
        _speed(run, nfe),
        _quality(run),
        Section("Environment", "", [Facts(dict(_environment(run)))]),
        _repeat(run, drawn),
    ]
    return title, text, [section for section in sections if section is not None]


def _told(run: Run, name: str) -> Any:
    """Return the schedule, the solver or the seed of a run, from whatever names it."""
    settings, what = _part(run.record, "settings"), run.manifest.what if run.manifest else {}
    return next((v for v in (run.record.get(name), what.get(name), settings.get(name)) if v is not None), "unknown")


def _shown(run: Run, samples: NDArray[Any], model: str) -> list[Part]:
    """Return pictures of the samples: of an inpainting the sheet that it made, of anything else one made here."""
    inpainted = bool(run.manifest and run.manifest.argv and run.manifest.argv[0] == "inpaint")
    if inpainted and run.folder and (run.folder / SHEET).exists():
        text = "A line an image: the original, what was known of it, and results."
        return [Picture(regular_file(run.folder / SHEET).read_bytes(), text)]
    return sample_parts(samples, model) or [Facts({"samples": "none were asked for"})]


def _classes(record: Mapping[str, Any], labels: NDArray[Any] | None) -> list[Part]:
    names = record.get("class_names")
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels):
        return []
    found, counts = np.unique(labels, return_counts=True)
    known = names if isinstance(names, list) else []
    rows = [
        [known[k] if 0 <= k < len(known) else f"class {k}", int(n)] for k, n in zip(found.tolist(), counts, strict=True)
    ]
    return [Table(["class", "samples"], rows[:50], "Classes that were asked for")]


def _trajectory(run: Run) -> tuple[dict[str, NDArray[Any]], str]:
    """Return the arrays of a run's trajectory; or none, and why."""
    file = None if run.folder is None else run.folder / FILES[1]
    if file is None or not file.exists():
        return {}, "No trajectory was kept; --trajectory keeps one."
    try:
        found = {name: array(file, name) for name in ("times", "states", "x0")}
    except ValueError as error:
        return {}, f"{error}."
    way = {name: x for name, x in found.items() if x is not None}
    lengths = [len(x) + (name == "x0") if x.ndim else 0 for name, x in way.items()]
    if not {"times", "states"} <= way.keys() or len(set(lengths)) > 1 or way["states"].ndim < 3:
        return {}, f"{file} is no trajectory; draw the run again, with --fresh --trajectory."
    return way, ""


def _way(run: Run, schedule: Schedule | None) -> Section | None:
    way, why = _trajectory(run)
    sampled = run.manifest and run.manifest.argv and run.manifest.argv[0] == "sample"
    if not way:
        there = run.folder is not None and (run.folder / FILES[1]).exists()
        return Section("From noise to samples", why) if sampled or there else None
    return Section("From noise to samples", "", way_parts(way["times"], way["states"], way.get("x0"), schedule))


def _schedule(drawn: Drawn, schedule: Schedule | None) -> Section | None:
    return None if schedule is None else Section("Schedule", "", schedule_charts(schedule, drawn.knots))


def _plan(run: Run, drawn: Drawn) -> Section | None:
    adaptive = _part(run.record, "adaptive")
    if drawn.plan is not None:
        other = run.record.get("plan_sha256", drawn.plan.hash) != drawn.plan.hash
        text = "This version or machine makes another plan than the one that drew the run. " if other else ""
        text += (
            f"{drawn.plan.nfe} network evaluations, {drawn.plan.draws} noise draws, {drawn.plan.slots} history slots."
        )
        return Section("Plan", text, plan_parts(drawn.plan))
    if not adaptive:
        return Section("Plan", drawn.why) if drawn.why and run.manifest else None
    text = "The solver chooses its steps while it runs, each sample its own; there is no plan."
    times = _trajectory(run)[0].get("times")
    chart = [step_chart(times)] if times is not None and times.ndim == 2 and times.size else []
    return Section("Steps", text, [*chart, Facts(adaptive)])


def _speed(run: Run, nfe: Any) -> Section | None:
    timings = _part(run.record, "timings")
    if not timings:
        return None
    names = {
        "setup_s": "setting up, s",
        "first_batch_s": "until the first batch was done, s",
        "sampling_s": "drawing and writing, s",
        "samples_per_s": "samples a second",
    }
    facts = {names.get(k, k.replace("_", " ")): v for k, v in timings.items()}
    rate = timings.get("samples_per_s")
    if isinstance(rate, float) and isinstance(nfe, int) and 0 < nfe < LONGEST:
        facts["network evaluations a second"] = rate * nfe
    load = _part(run.record, "load")
    text = "Other processes wanted the cores at that time, so a quiet machine is faster." if load.get("busy") else ""
    return Section("Speed, and where the time went", text, [Facts(facts), *_metrics(run)])


def _metrics(run: Run) -> Iterator[Part]:
    """Yield what files of metrics in the folder say, if there are any."""
    for file in sorted(run.folder.glob("*.prom"))[:4] if run.folder else ():
        if file.is_file() and file.stat().st_size <= LONGEST:
            lines = [line.rsplit(" ", 1) for line in file.read_text(errors="replace").splitlines()]
            rows = [line for line in lines if len(line) == 2 and not line[0].startswith("#")]
            yield Table(["metric", "value"], rows[:50], f"Metrics, {file.name}")


def _quality(run: Run) -> Section | None:
    file = None if run.folder is None else run.folder / QUALITY
    if file is None or not file.is_file():
        return None
    try:
        figures = read_json(file, LONGEST)
    except ValueError as error:
        return Section("Quality", f"{error}.")
    if not isinstance(figures, dict):
        return Section("Quality", f"{QUALITY} holds no named figures.")
    if stale(figures, file.parent):
        return Section("Quality", f"{QUALITY} is of other samples than these: `fastscore evaluate` them again.")
    return Section("Quality", "", [Table(["figure", "value"], list(flat(figures))[:200], f"Figures of {QUALITY}")])


def stale(figures: Mapping[str, Any], folder: Path) -> bool:
    """Return whether figures name another run than the one that a folder holds now."""
    told = _part(figures, "overall").get("run")
    return told is not None and told != open_run(str(folder)).identity


def _environment(run: Run) -> Iterator[tuple[str, Any]]:
    """Yield what the samples and their speed depend on beside what was asked for."""
    numerics = run.manifest.numerics if run.manifest else {}
    for values in (_part(run.record, "versions"), numerics, _part(run.record, "execution")):
        yield from ((k, v) for k, v in values.items() if not isinstance(v, Mapping))
    yield from ((k, run.record[k]) for k in ("backend", "graph", "threads") if k in run.record)
    for name in ("network", "cuda", "load"):
        yield from ((f"{name}: {k}", v) for k, v in _part(run.record, name).items() if v is not None)


def _repeat(run: Run, drawn: Drawn) -> Section:
    manifest, parts = run.manifest, list[Part]()
    if manifest is not None and manifest.argv is not None:
        command = shlex.join(["fastscore", *manifest.argv, "--out", "again"])
        parts.append(Code(f"{command}\nfastscore verify {shlex.quote(run.name)}"))
        text = "The first line draws the samples again, the second checks those that are there."
    else:
        text = str(run.record.get("command", "It was drawn from Python: the same call draws it again."))
    hashes: dict[str, Any] = {}
    if "plan_sha256" in run.record:
        hashes["plan"] = run.record["plan_sha256"]
    if manifest is not None:
        hashes |= {"manifest": manifest.hash, "model": manifest.what.get("model", "")}
    for name in (*FILES[:2], SHEET):
        if run.folder and (run.folder / name).is_file():
            hashes[name] = _sha256(run.folder / name)
    rows = [[name, value] for name, value in hashes.items()]
    asked = {k: v for k, v in _part(run.record, "settings").items() if v not in (None, False)}
    settings = Facts(asked | {k: run.record[k] for k in ("schedule", "solver", "grid") if k in run.record})
    return Section(
        "To repeat it", text, [*parts, *([Table(["of", "sha256"], rows, "Hashes")] if rows else []), settings]
    )


def flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested values by their path, a.b.c."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _part(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a part of a record, {} where it has none: records of other versions have other parts."""
    part = record.get(name)
    return part if isinstance(part, Mapping) else {}


def _sha256(file: Path) -> str:
    if file.stat().st_size > HASHED:
        return f"not taken of {file.stat().st_size:,} bytes"
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while data := opened.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()
