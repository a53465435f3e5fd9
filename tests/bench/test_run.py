"""The command lines: run.py and validate_gpu.py."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench import common, records, run, validate_gpu
from bench.ops import quantize

ROOT = Path(__file__).parents[2]


def test_unknown_names_are_refused(capsys):
    assert run.NAMES == ["noise", "norms", "output", "peers", "quantize", "sampler", "update"]
    with pytest.raises(SystemExit) as stop:
        run.main(["noise", "typo"])
    assert stop.value.code == 2
    assert (
        "no bench called typo; there are noise, norms, output, peers, quantize, sampler, update"
        in capsys.readouterr().err
    )


def test_help_imports_no_torch():
    code = "import sys, bench.run\ntry: bench.run.main(['--help'])\nexcept SystemExit: sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL)
    assert done.returncode == 0


@pytest.mark.parametrize(
    "script", ["run.py", *(pytest.param(name, marks=pytest.mark.slow) for name in ("report.py", "validate_gpu.py"))]
)
def test_scripts_run_by_their_path(script, tmp_path):
    done = subprocess.run([sys.executable, ROOT / "bench" / script, "--help"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_a_quick_run(tmp_path, capsys):
    file, md = tmp_path / "r.jsonl", tmp_path / "r.md"
    assert run.main(["quantize", "--quick", "--device", "cpu", "--json", str(file), "--md", str(md)]) == 0
    made = records.load(file)
    assert [r["bench"] for r in made] == ["quantize"] and made[0]["quick"]
    assert "torch.compile" in made[0]["skipped"] and "skipped: --quick" in capsys.readouterr().out
    assert "| quantize | 64x1x28x28 |" in md.read_text()


def test_a_red_gate_is_the_exit_code(tmp_path, monkeypatch, capsys):
    red = common.Case("quantize", "tiny", {}, [], lambda: [common.Check("bytes", 1.0, 0.0)], (4, "element"))
    monkeypatch.setattr(quantize, "cases", lambda setting: [red])
    assert run.main(["quantize", "--quick", "--device", "cpu", "--json", str(tmp_path / "r.jsonl")]) == 1
    assert "RED" in capsys.readouterr().out
    assert "seconds" not in records.load(tmp_path / "r.jsonl")[0]


def test_validation_without_a_gpu_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert validate_gpu.main([]) == 3
    assert capsys.readouterr().out == "no CUDA device on this machine: nothing validated\n"


class Steps:
    """What validation runs: each step takes what a table says, or its limit if that is less, by a clock of its own."""

    def __init__(self, takes: dict[str, float] | None = None, fails: tuple[str, ...] = ()) -> None:
        self.time, self.takes, self.fails, self.ran = 0.0, takes or {}, fails, []

    def __call__(self, command, seconds, log):
        name = log.stem
        self.ran.append((name, list(command), seconds))
        takes = self.takes.get(name, 1.0)
        self.time += min(takes, seconds)
        log.write_text("line\n" * 100)
        return validate_gpu.LATE if takes > seconds else int(name in self.fails)


def test_validation_runs_every_step_whatever_fails(tmp_path, monkeypatch, env):
    monkeypatch.setattr(validate_gpu.shutil, "which", lambda name: None)
    fake, reports = Steps(fails=("pytest-m-gpu",)), []
    planned = validate_gpu.steps(tmp_path, tmp_path / "r.jsonl", quick=True)
    done = validate_gpu.perform(planned, fake, tmp_path, 600.0, lambda r: reports.append(len(r)), lambda: fake.time)
    assert [(s.name, s.passed) for s in done] == [
        ("self-check", True), ("pytest -m gpu", False), ("bench, TF32 as torch has it", True),
        ("bench, TF32 off", True), ("compute-sanitizer", None),
    ]  # fmt: skip
    assert reports == [1, 2, 3, 4, 5]  # a report after each: a killed run leaves one
    assert "--quick" in fake.ran[2][1] and fake.ran[3][1][-5:-2] == ["sampler", "--tf32", "off"]
    assert len(done[0].output.splitlines()) == validate_gpu.TAIL
    text = validate_gpu.markdown(env, done, "TABLES")
    assert "| pytest -m gpu | **FAILED** |" in text and "| compute-sanitizer | could not run |" in text


def test_validation_keeps_its_budget(tmp_path, monkeypatch):
    monkeypatch.setattr(validate_gpu.shutil, "which", lambda name: name)
    endless = Steps(dict.fromkeys(("self-check", "pytest-m-gpu", "compute-sanitizer"), 1e9))
    planned = validate_gpu.steps(tmp_path, tmp_path / "r.jsonl", quick=False)
    done = validate_gpu.perform(planned, endless, tmp_path, 500.0, lambda r: None, lambda: endless.time)
    assert endless.time == pytest.approx(500.0) and [s.passed for s in done] == [False, False, True, True, False]
    assert done[0].output.startswith("ended at its limit of 25 s")
    limits = {name: seconds for name, _, seconds in endless.ran}
    assert limits["compute-sanitizer"] == pytest.approx(500.0 - 25.0 - 150.0 - 2.0)  # what the others left
    command = dict((name, command) for name, command, _ in endless.ran)["bench-tf32-off"]
    assert float(command[-1]) == pytest.approx(0.9 * limits["bench-tf32-off"], abs=0.5)  # whole seconds


def test_a_step_that_hangs_is_ended_and_its_output_stays(tmp_path):
    log = tmp_path / "log"
    code = "import os, time; os.fork(); print(os.getpid(), flush=True); time.sleep(1e6)"
    assert validate_gpu.run_here([sys.executable, "-S", "-c", code], 0.5, log) == validate_gpu.LATE
    pids = log.read_text().split()
    assert len(pids) == 2
    for pid in pids:
        stat = Path(f"/proc/{pid}/stat")
        for _ in range(200):
            if not stat.exists() or stat.read_text().rsplit(") ", 1)[1][0] == "Z":
                break
            time.sleep(0.02)
        else:
            pytest.fail(f"process {pid} outlived its step")
    assert validate_gpu.run_here([sys.executable, "-c", "print(1); raise SystemExit(3)"], 60.0, log) == 3


def test_a_bench_keeps_its_budget_and_says_what_it_left_out(tmp_path, monkeypatch, capsys):
    at = [0.0]

    def cases(setting):
        for k in range(10):
            assert setting.deadline == pytest.approx(30.0)  # half of the minute: two benches
            yield common.Case("quantize", f"case {k}", {}, [], lambda: [], (1, "element"))

    def measure(case, setting):
        at[0] += 12.0
        return {"bench": "quantize", "case": case.name, "quick": True, "red": "not measured"}

    monkeypatch.setattr(quantize, "cases", cases)
    monkeypatch.setattr("bench.ops.noise.cases", lambda setting: iter(()))
    monkeypatch.setattr(common, "measure", measure)
    monkeypatch.setattr(common.Setting, "now", staticmethod(lambda: at[0]), raising=False)
    setting = common.Setting(torch.device("cpu"), quick=True, now=lambda: at[0])
    kept = []
    assert run.measure_all(["quantize", "noise"], setting, 60.0, kept.append) == ["the rest of quantize"]
    assert [r["case"] for r in kept] == ["case 0", "case 1", "case 2"]


def test_options_reach_the_benches(tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(quantize, "cases", lambda setting: seen.append((setting, tf32())) or iter(()))

    def tf32():
        return torch.backends.cudnn.allow_tf32

    words = ["quantize", "--quick", "--device", "cpu", "--out", str(tmp_path / "deep")]
    assert run.main([*words, "--batch", "7", "--network", "own,auto", "--tf32", "off"]) == 0
    assert run.main(words) == 0
    (setting, off), (plain, user) = seen
    assert (setting.batch, setting.networks, off, plain.networks, user) == (
        7, ("own", "auto"), False, ("own", "compile"), tf32(),
    )  # fmt: skip
    assert (tmp_path / "deep" / "tables.md").exists()
    for wrong, message in (
        (["--batch", "0"], "--batch 0 must be"), (["--budget", "-1"], "--budget -1.0 must be"),
        (["--network", "fast"], "fast"), (["--tf32", "on"], "invalid choice"),
    ):  # fmt: skip
        with pytest.raises(SystemExit) as stop:
            run.main([*words, *wrong])
        assert stop.value.code == 2 and message in capsys.readouterr().err
