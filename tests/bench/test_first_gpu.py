"""The first run on a card, on a CPU: its phases leave their records, whatever one of them does to itself."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fake_cuda import FakeCuda

from bench import first_gpu
from bench.card import bits, captures, env, lines, nets, networks, profiles, pytests, rows, spare, summary, whole
from bench.card.card import Card
from bench.card.plan import PHASES, Phase
from fastscore.ops.backend import REFERENCE

ROOT = Path(__file__).parents[2]


def card(out: Path, phase: str = "P1", seconds: float = 60.0, **fields) -> Card:
    return Card(out, phase, seconds, dry=True, **fields)


def by_item(out: Path) -> dict[str, dict]:
    return {r["item"]: r for r in lines.load(out)}


def test_a_phase_leaves_its_records(tmp_path):
    items = ("noise v1", "update known, CFG, own rows 7x3072", "langevin sample float32 7x3072")
    bits.run(card(tmp_path, only=items))
    found = by_item(tmp_path)
    assert tuple(found) == items and all(r["ok"] and r["dry"] and r["phase"] == "P1" for r in found.values())
    text = summary.write(tmp_path, PHASES)
    assert (tmp_path / "summary.md").read_text() == text and "dry run" in text.splitlines()[0]
    assert "| P1 | whether every kernel variant gives the CPU's bits | not run, or still running |  | 3 | 0 |" in text


def test_a_wrong_bit_of_any_output_is_red():
    def update(x, F, hist, table, idx, noise, *, F2=None, known=None, out_u=None):
        REFERENCE.update(x, F, hist, table, idx, noise, F2=F2, known=known, out_u=out_u)
        out_u[-1, -1] = -out_u[-1, -1]

    def langevin(x, F, table, idx, noise, scratch, norm, valid, F2=None):
        REFERENCE.langevin(x, F, table, idx, noise, scratch, norm, valid, F2=F2)
        scratch.view(torch.int32)[0, 0] ^= 1

    wrong = replace(REFERENCE, update=update, langevin=langevin, quantize=lambda x, r: REFERENCE.quantize(x, r).add_(1))
    cpu, seen = torch.device("cpu"), set()
    for variant in bits.variants():
        if variant.op not in seen:
            seen.add(variant.op)
            assert bits.compare(variant, REFERENCE, cpu)["ok"]
            assert not bits.compare(variant, wrong, cpu)["ok"], variant.name
    assert seen == {"update", "langevin", "quantize"}


def test_machine_code_is_looked_through(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(bits, "compile_one", lambda: None)
    for folder, text in (("a", "fma.rn.f32 %f1"), ("b", "sqrt.rn.ftz.f32"), ("c", "mul.rn.f32; mad.lo.s32")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "_update_kernel.ptx").write_text(text)
    (tmp_path / "c" / "triton_poi_fused_0.ptx").write_text("fma.rn.f32")  # not ours
    found = bits.machine_code(card(tmp_path))
    assert found["compilations"] == 3 and not found["ok"]
    assert found["fma"] == ["_update_kernel: fma.rn.f32"] and found["ftz"] == ["_update_kernel: .ftz"]
    for folder in "ab":
        (tmp_path / folder / "_update_kernel.ptx").unlink()
    assert bits.machine_code(card(tmp_path))["ok"]


def test_what_an_item_raises_is_its_record(tmp_path):
    done = card(tmp_path)

    def fails():
        raise RuntimeError("no kernel image is available")

    done.do_all({"first": fails, "second": lambda: {"ok": True, "figure": 1.5}, "silent": lambda: None})
    late = card(tmp_path, seconds=-1.0)
    late.do("third", fails)
    with (tmp_path / lines.NAME).open("a") as file:
        file.write('{"phase": "P1", "item": "cut o')  # the line of a process that was killed
    found = by_item(tmp_path)
    assert list(found) == ["first", "second", "third"]
    assert (
        found["first"]["error"] == "RuntimeError: no kernel image is available" and "fails" in found["first"]["trace"]
    )
    assert found["third"]["skipped"] == "no time left" and found["third"]["ok"] is None
    text = summary.write(tmp_path, PHASES)
    assert "- P1 first: RuntimeError: no kernel image is available" in text and "| second | yes | figure 1.5," in text


class Planned(first_gpu.Run):
    """A run whose phases take what a table says, by a clock that only they move."""

    def __init__(self, out: Path, budget: float, takes: dict[str, float]) -> None:
        self.time, self.takes, self.given, self.events = 0.0, takes, {}, []
        super().__init__(out, budget, True, now=lambda: self.time)

    def start(self, phase, seconds):
        self.given[phase.name] = seconds
        self.events.append(f"start {phase.name}")
        child = first_gpu.Child(phase, None, self.time)
        if phase.beside:
            self.children.append(child)
        return child

    def finish(self, child, limit):
        self.events.append(f"end {child.phase.name}")
        self.time += min(limit, self.takes.get(child.phase.name, 0.0))
        if child in self.children:
            self.children.remove(child)


@pytest.mark.parametrize("each_takes", [0.0, 30.0, 1e9])
def test_the_budget_is_kept_and_shared_anew(tmp_path, each_takes):
    run = Planned(tmp_path, 540.0, {p.name: each_takes for p in PHASES})
    run.all(PHASES)
    assert run.time <= 540.0
    begun = [name for name in run.given if name != "AHEAD"]
    assert begun == [p.name for p in PHASES if not p.beside][: len(begun)]
    if each_takes == 0.0:  # what the others leave goes to the last
        assert run.given["P9"] == pytest.approx(535.0) and run.given["P5"] > 200.0
    else:
        assert len(begun) == 10 and all(run.given[p.name] > 0.3 * p.seconds for p in PHASES)
    timed = [p.name for p in PHASES if p.timed][1]
    assert run.events.index("start AHEAD") < run.events.index("start P1")
    assert run.events.index("end AHEAD") < run.events.index(f"start {timed}")


def test_bad_command_lines_are_refused(tmp_path, capsys):
    (tmp_path / lines.NAME).touch()
    for words, message in (
        (["--out", "x", "--only", "P4,P77"], "no phase P77; there are P0, AHEAD, P1"),
        (["--out", "x", "--budget", "0"], "--budget 0.0 must be a positive number of seconds"),
        (["--out", "x", "--budget", "nan"], "--budget nan"),
        (["--out", str(tmp_path)], "has the records of another run; give another folder"),
    ):
        with pytest.raises(SystemExit) as stop:
            first_gpu.main(words)
        assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not Path("x").exists()


@pytest.mark.parametrize(
    ("out", "only", "said"),
    [
        ("file", "", "cannot be written"),
        ("file/below", "", "cannot be written"),
        ("folders", "", "cannot be written"),  # a log and a summary that are folders
        ("", "", "give a folder"),
        ("new", " ,", "names no phase"),
    ],
)
def test_a_folder_that_cannot_be_written_is_told_at_once(tmp_path, capsys, out, only, said):
    (tmp_path / "file").touch()
    (tmp_path / "folders" / "summary.md").mkdir(parents=True)
    with pytest.raises(SystemExit) as ended:
        first_gpu.main(["--dry", "--out", out and str(tmp_path / out), "--only", only, "--budget", "1"])
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_busy_is_a_union_and_gaps_lie_outside_it():
    found = [(0.0, 4.0, "a"), (1.0, 2.0, "b"), (6.0, 7.0, "a"), (6.5, 10.0, "c")]
    assert profiles.busy(found) == pytest.approx(0.8) and profiles.gaps(found) == [2.0] and profiles.busy([]) == 0.0
    figures = profiles.figures(found)
    assert figures["kernels"] == 4 and figures["count_and_us"]["a"] == [2, 5.0]


def planted(folder: Path, monkeypatch: pytest.MonkeyPatch, **bodies: str) -> list[Phase]:
    """Write modules of phases, each beginning with a record."""
    folder.mkdir()
    for name, body in bodies.items():
        text = f"import os, time\ndef run(card):\n    card.put('begun', pid=os.getpid())\n    {body}\n"
        (folder / f"planted_{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setattr(first_gpu, "prepared", lambda scratch, dry: (dict(os.environ), {}))
    return [Phase(name, f"planted_{name}", 1.0 if name == "hang" else 4.0, name) for name in bodies]


@pytest.mark.slow
def test_a_phase_that_crashes_or_hangs_leaves_the_others(tmp_path, monkeypatch, capsys):
    phases = planted(
        tmp_path / "modules", monkeypatch, crash="os.abort()", hang="os.fork(); time.sleep(1e6)", fine="pass"
    )
    start = time.monotonic()
    assert first_gpu.main(["--out", str(tmp_path / "out"), "--budget", "20", "--dry"], phases) == 1
    assert time.monotonic() - start < 40.0  # a bound on hanging, not a time
    found = lines.load(tmp_path / "out")
    ends = {r["phase"]: r["ended"] for r in found if r["item"] == lines.END}
    assert ends == {"crash": "crashed: SIGABRT", "hang": "ended at its limit", "fine": "finished"}
    assert [r["phase"] for r in found if r["item"] == "begun"] == ["crash", "hang", "fine"]
    log = (tmp_path / "out" / "log").read_text()
    assert log.count("planted_hang.py") >= 1 and "Fatal Python error: Aborted" in log  # where it hung
    text = (tmp_path / "out" / "summary.md").read_text()
    assert "| hang | hang | ended at its limit |" in text and "| fine | fine | finished |" in text


def gone(pid: int) -> bool:
    """Wait until a process has ended."""
    for _ in range(500):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a phase ends with its run through Linux's prctl")
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.nightly)])
def test_a_killed_run_leaves_its_summary(tmp_path, monkeypatch, number):
    planted(tmp_path / "modules", monkeypatch, fine="pass", hang="time.sleep(1e6)")
    out = tmp_path / "out"
    code = (
        "import sys; from pathlib import Path; from bench import first_gpu; from bench.card.plan import Phase;"
        "first_gpu.prepared = lambda scratch, dry: (dict(__import__('os').environ), {});"
        "phases = [Phase('fine', 'planted_fine', 1.0, 'fine'), Phase('hang', 'planted_hang', 1.0, 'hang')];"
        f"sys.exit(first_gpu.main(['--out', {str(out)!r}, '--dry', '--budget', '60'], phases))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        if [r["phase"] for r in lines.load(out) if r["item"] == "begun"] == ["fine", "hang"]:
            break
        time.sleep(0.05)
    process.send_signal(number)
    code = process.wait(30.0)
    text = (out / "summary.md").read_text()
    assert "| fine | fine | finished |" in text
    if number == signal.SIGTERM:
        assert code == 128 + number and "| hang | hang | stopped |" in text
    else:
        pid = next(r["pid"] for r in lines.load(out) if r["phase"] == "hang")
        assert code == -number and gone(pid)


@pytest.mark.slow
def test_every_phase_yields_its_records(tmp_path, monkeypatch):
    """The phases of a dry run, one after another in this process."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))  # as each phase has one that is its own
    for phase in PHASES:
        done = card(tmp_path, phase.name, 300.0)
        if phase.name in ("AHEAD", "P2"):  # what they do in processes of their own, here
            done.only = ALL
        import_module(phase.module).run(done)
    found = lines.load(tmp_path)
    assert [r for r in found if r["ok"] is False] == []
    count = {p.name: sum(r["phase"] == p.name for r in found) for p in PHASES}
    least = {"P0": 8, "AHEAD": 3, "P1": 20, "P2": 18, "P3": 10, "P4": 10, "P5": 11, "P6": 9, "P7": 3, "P8": 2, "P9": 3}
    assert set(least) == set(count) and all(count[name] >= n for name, n in least.items()), count
    for words in ("percent_of_copy", "launches_a_row", "images_per_s", "first_sample_s", "capture_s", "host_us"):
        assert any(words in r for r in found), words
    assert {r["item"] for r in found if r["phase"] == "P2" and r["ok"]} >= {"2M", "known", "a second thread"}


class Everything(tuple):
    """The names of all items."""

    def __contains__(self, item: object) -> bool:
        return True


ALL = Everything(("all",))


@pytest.mark.slow
@pytest.mark.nightly
def test_a_dry_run(tmp_path):
    command = [sys.executable, ROOT / "bench" / "first_gpu.py", "--out", tmp_path / "out", "--budget", "400", "--dry"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    ends = {r["phase"]: r["ended"] for r in lines.load(tmp_path / "out") if r["item"] == lines.END}
    assert ends == {p.name: "finished" for p in PHASES}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "junit-test_gpu.xml", "log", "records.jsonl", "summary.md",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.nightly
def test_an_item_that_crashes_or_hangs_leaves_the_others(tmp_path, monkeypatch):
    (tmp_path / "planted_items.py").write_text(
        "import os, time\n"
        "from bench.card.isolated import each\n"
        "def run(card):\n"
        "    items = {'crash': os.abort, 'hang': lambda: time.sleep(1e6), 'fine': lambda: {'ok': True},\n"
        "             'raises': lambda: 1 / 0}\n"
        "    each(card, 'planted_items', items, at_once=4, limit=20.0)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    import_module("planted_items").run(card(tmp_path))
    found = by_item(tmp_path)
    assert {name: r["ok"] for name, r in found.items()} == {
        "crash": False, "hang": False, "fine": True, "raises": False,
    }  # fmt: skip
    assert "SIGABRT" in found["crash"]["error"] and "hung" in found["hang"]["error"]
    assert "ZeroDivisionError" in found["raises"]["error"]


@pytest.mark.slow
@pytest.mark.nightly
def test_a_test_that_hangs_or_crashes_leaves_the_others(tmp_path, monkeypatch):
    file = tmp_path / "test_planted.py"
    file.write_text(
        "import os, time\n"
        "def test_a(): pass\n"
        "def test_crashes(): os.abort()\n"
        "def test_fails(): assert 1 == 2\n"
        "def test_hangs(): time.sleep(1e6)\n"
        "def test_z(): pass\n"
    )
    monkeypatch.setattr(pytests, "LIMIT", 2.0)
    monkeypatch.setattr(
        pytests, "OPTIONS", ["-q", "-p", "no:cacheprovider", "-o", "addopts=", "--import-mode=importlib"]
    )
    out = tmp_path / "out"
    out.mkdir()
    pytests.run(card(out, "P3"), [str(file)])
    found = {r["item"].split("::")[-1]: r for r in lines.load(out)}
    oks = {name: r["ok"] for name, r in found.items() if name.startswith("test_")}
    assert oks == {"test_a": True, "test_crashes": False, "test_fails": False, "test_hangs": False, "test_z": True}
    assert "1 == 2" in found["test_fails"]["error"] and "too long" in found["test_hangs"]["error"]


def test_tools_that_are_there_are_run_on_chosen_items(tmp_path, monkeypatch):
    for name, code in (("compute-sanitizer", spare.ERROR), ("ncu", 0)):
        file = tmp_path / name
        file.write_text(f'#!/bin/sh\necho "$@"\nexit {code}\n')
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    spare.run(card(tmp_path, "P9"))
    found = by_item(tmp_path)
    assert found["memcheck"]["ok"] is False and found["memcheck"]["found"] == "errors" and found["ncu"]["ok"]
    names = {variant.name for variant in bits.variants()}
    assert set(spare.MEMORY) | set(spare.RACES) <= names and len(spare.MEMORY) == 10
    assert all(item in found["memcheck"]["output"] for item in spare.MEMORY)
    rows_items = {f"{title} {shape}" for shape in rows.SHAPES for title in rows.Bed(card(tmp_path), 4, 12).items()}
    assert "row SDE 512x3072" in rows_items and "row SDE 512x3072" in found["ncu"]["output"]


def test_a_machine_without_an_install_gets_links_and_stand_ins(tmp_path, monkeypatch):
    found = {"kernels": False, "cuda": False, "tqdm": False, "safetensors": False, "safetensors.torch": False,
             "PIL": True}  # fmt: skip
    answer = subprocess.CompletedProcess([], 0, json.dumps(found).encode() + b"\n")
    monkeypatch.setattr(first_gpu.subprocess, "run", lambda *a, **k: answer)
    env, told = first_gpu.prepared(tmp_path, dry=True)
    site = Path(env["PYTHONPATH"].split(os.pathsep)[0])
    assert told == found and site == tmp_path / "site" and not (site / "PIL").exists()
    assert (site / "fastscore" / "kernels" / "abi.py").exists() and (site / "fastscore" / "sampler.py").exists()
    assert env["FASTSCORE_BACKEND"] == "reference" and env["CUDA_VISIBLE_DEVICES"] == ""
    code = (
        "from tqdm import tqdm; from safetensors import SafetensorError; from safetensors.torch import load_file\n"
        "try: raise SafetensorError\nexcept SafetensorError: print(tqdm)"
    )
    monkeypatch.undo()
    path = os.pathsep.join([str(site)])
    done = subprocess.run([sys.executable, "-S", "-c", code], env={**os.environ, "PYTHONPATH": path}, check=True,
                          capture_output=True, text=True)  # fmt: skip
    assert "tqdm" in done.stdout


class Pretended(Card):
    """A card that is a CPU: sizes and samplers of a dry run, and every branch that only a GPU takes."""

    device = torch.device("cpu")

    def pick(self, full, dry):
        return dry

    def sampler(self, model, graph="off", **settings):
        return Card(self.out, self.phase, self.seconds, dry=True).sampler(model, graph, **settings)


class Event:
    def record(self) -> None: ...

    def elapsed_time(self, end: Event) -> float:
        return 0.5


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    """A pretended card over a driver that answers."""
    properties = SimpleNamespace(multi_processor_count=132, L2_cache_size=2**25, total_memory=2**36, warp_size=32)
    answers = {
        "synchronize": lambda *device: None, "empty_cache": lambda: None, "current_stream": lambda *device: "stream",
        "memory_reserved": lambda device: 2**20, "memory_allocated": lambda device: 2**20,
        "mem_get_info": lambda device: (2**30, 2**36), "get_device_properties": lambda device: properties,
        "set_sync_debug_mode": lambda mode: None, "Event": lambda **options: Event(),
    }  # fmt: skip
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setattr(torch, "compile", lambda net, **options: net)
    return Pretended(tmp_path, "P", 600.0, dry=False)


@pytest.mark.slow
def test_what_only_a_card_does_runs(pretended, monkeypatch):
    assert captures.uncapturable(pretended)["ok"] and captures.empty_cache(pretended)["ok"]
    assert captures.memory(pretended)["mib"] == (2**16 - 2**10,) * 2
    assert env.device(pretended)["sms"] == 132 and env.copy(pretended)["gb_per_s"] == pytest.approx(
        2**20 / 0.5e-3 / 1e9
    )
    bed = rows.Bed(pretended, 4, 12)
    make, each_moves = bed.items()["SDE row of PyTorch, compiled"]
    assert bed.measure(make, each_moves)["us"] == pytest.approx(250.0)  # half a millisecond for two launches
    monkeypatch.setattr(nets, "SIZES", ())
    problem = nets.Problem.__new__(nets.Problem)
    made = nets.random_model({**nets.SPEC, **nets.TINY}, pretended.device)
    problem.card, problem.batch, problem.model = pretended, 2, made
    problem.trial = nets.Trial(made, made.net, 2, pretended.device)
    problem.inputs = nets.three(problem.trial.example)
    monkeypatch.setattr(nets.fs, "prepare", lambda model, batch, device, network: model)
    for way in (nets.Way(True), nets.Way(dtype=torch.bfloat16, inductor=True), nets.Way(network="auto")):
        facts = networks.measure(pretended, problem, way)
        assert facts["ms"] == pytest.approx(0.5) and facts["error"] < 0.05
    pretended.do("fails", lambda: 1 / 0)
    assert by_item(pretended.out)["fails"]["dry"] is False


def test_a_stream_that_is_not_given_back_and_memory_that_grows_are_red(pretended, monkeypatch):
    streams, free = iter("ab"), iter(range(2**36, 0, -(2**27)))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *device: next(streams))
    monkeypatch.setattr(captures, "make", lambda *a, **k: SimpleNamespace(run=lambda *a, **k: None))
    monkeypatch.setattr(captures, "matrix", lambda done, case: {"ok": True})
    facts = captures.uncapturable(pretended)
    assert facts["ok"] is False and facts["stream restored"] is False
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (next(free), 2**37))
    assert captures.memory(pretended)["ok"] is False  # 128 MiB more
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**36, 2**37))
    assert captures.memory(pretended)["ok"] is True


def test_waits_of_the_host_are_counted(pretended, monkeypatch):
    def waits(*arguments, **fields):
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=2)
        return torch.zeros(4)

    monkeypatch.setattr(captures, "make", lambda *a: SimpleNamespace(run=waits))
    assert captures.syncs(pretended)["waits"] == 3


def test_figures_are_what_they_say(tmp_path, monkeypatch):
    done = card(tmp_path, "P6")
    bed = rows.Bed(done, 10, 100)
    times = {True: 4e-6, False: 3e-6}  # an operation, a copy of as many bytes
    monkeypatch.setattr(rows.Bed, "rotated", lambda self, make, moved: (times[make is work], lambda: None))

    def work() -> None: ...

    facts = bed.measure(work, 16)
    assert (facts["us"], facts["percent_of_copy"], facts["bytes"]) == pytest.approx((4.0, 75.0, 16000))
    assert facts["gb_per_s"] == pytest.approx(4.0) and facts["copy_gb_per_s"] == pytest.approx(16 / 3)

    lengths = []

    def spans(done, run):
        lengths.append(len(run.__self__.plan.rows))
        return [(float(k), k + 0.5, "kernel") for k in range(5 + 3 * lengths[-1])]

    monkeypatch.setattr(profiles, "spans", spans)
    facts = profiles.rows(done, profiles.fs.DPMpp2M())
    assert facts["launches_a_row"] == 3.0 and lengths[1] > lengths[0]

    monkeypatch.setattr(Card, "wall", lambda self, work, calls=1: (work(), 0.5)[1])
    bench = whole.Bench(done, "fashion", 2)
    facts = bench.fastscore("step")
    assert (facts["images"], facts["images_per_s"], facts["first_sample_s"]) == (2, 4.0, 0.5)
    facts = bench.by_hand("CUDA graph")
    assert facts["ok"] and facts["images_per_s"] == 4.0 and facts["difference"] < 1e-5
    ddim = whole.baselines.ddim
    monkeypatch.setattr(whole.baselines, "ddim", lambda *a: 1.1 * ddim(*a))
    assert not bench.by_hand("eager")["ok"]


@pytest.mark.slow
@pytest.mark.nightly
def test_phases_run_on_a_device_that_is_pretended_whole(tmp_path, monkeypatch):
    """Samplers, graphs and events on a fake of CUDA: no branch of a dry run."""
    monkeypatch.setenv("FASTSCORE_BACKEND", "reference")
    monkeypatch.setattr(torch, "compile", lambda net, **options: net)

    class Small(Card):
        def pick(self, full, dry):
            return dry

    gc.disable()
    try:
        with FakeCuda(devices=1):
            done = Small(tmp_path, "P", 600.0, dry=False)
            for name in ("2M", "CFG", "known"):
                done.do(name, lambda name=name: captures.matrix(done, captures.cases()[name]))
            rows.run(replace(done, only=("row ODE 4x12", "row SDE, known 4x12", "quantize 4x12")))
            done.do_all(whole.Bench(done, "fashion", 2).items())
    finally:
        gc.enable()
    found = by_item(tmp_path)
    assert len(found) == 15 and [r for r in found.values() if r["ok"] is False] == []
    assert found["fashion 2 fastscore, graph loop"]["graph"] == "loop"
