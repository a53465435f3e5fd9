"""The command lines: run.py and validate_gpu.py."""

from __future__ import annotations

import subprocess
import sys
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


def test_validation_runs_every_step_whatever_fails(tmp_path, monkeypatch, env):
    ran = []

    def fake(command):
        ran.append(command)
        return subprocess.CompletedProcess(command, 1 if "pytest" in command else 0, "line\n" * 100)

    monkeypatch.setattr(validate_gpu.shutil, "which", lambda name: None)
    done = validate_gpu.steps(fake, tmp_path / "r.jsonl", quick=True)
    assert [(s.name, s.passed) for s in done] == [
        ("pytest -m gpu", False), ("self-check", True), ("compute-sanitizer", None), ("bench", True),
    ]  # fmt: skip
    assert ran[-1][-1] == "--quick" and len(done[0].output.splitlines()) == validate_gpu.TAIL
    text = validate_gpu.markdown(env, done, "TABLES")
    assert "| pytest -m gpu | **FAILED** |" in text and "| compute-sanitizer | could not run |" in text
