"""The bench harness, without measuring anything that matters; no test looks at a real clock."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import common
import pytest
import records
import report
import run
import telemetry
import torch
import validate_gpu

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
QUICK = common.Setting(CPU, quick=True)


class Ticks:
    """A clock that only work moves, by its cost times the load of the machine."""

    def __init__(self):
        self.now, self.load = 0.0, 1.0

    def work(self, seconds: float):
        def run() -> None:
            self.now += seconds * self.load

        return run


def case(check=lambda: [], **changes) -> common.Case:
    ways = {common.OURS: lambda: None, common.EAGER: lambda: None}
    given = {"bench": "noise", "name": "tiny", "ways": ways, "pairs": [(common.OURS, common.EAGER)], "check": check}
    return common.Case(**{**given, "items": (4, "element"), "moved": 16, "facts": {"backend": "reference"}, **changes})


# --- timing ---------------------------------------------------------------------------------------


def test_drift_cancels_in_paired_ratios():
    ticks = Ticks()

    def slow(seconds: float):
        def run() -> None:
            ticks.load *= 1.01  # the machine gets slower all the time
            ticks.now += seconds * ticks.load

        return run

    seconds = common.paired({"a": slow(1.0), "b": slow(3.0)}, common.HostClock(lambda: ticks.now), 4, 0.0)
    assert seconds["a"][-1] > 1.05 * seconds["a"][0]
    ratios = common.spread([b / a for a, b in zip(seconds["a"], seconds["b"], strict=True)])
    assert ratios["p50"] == pytest.approx(3.0, rel=0.02)


def test_rounds_alternate_and_short_work_is_called_often():
    ticks, order = Ticks(), []
    short, long = ticks.work(0.001), ticks.work(0.1)
    ways = {"short": lambda: (order.append("s"), short()), "long": lambda: (order.append("l"), long())}
    seconds = common.paired(ways, common.HostClock(lambda: ticks.now), 3, 0.01)
    assert seconds["short"] == pytest.approx([0.001] * 3) and seconds["long"] == pytest.approx([0.1] * 3)
    assert "".join(order[4:]) in ("s" * 10 + "ll" + "s" * 20 + "l", "s" * 11 + "ll" + "s" * 22 + "l")


def test_spread_is_three_percentiles():
    assert common.spread([5.0, 1.0, 2.0, 3.0, 4.0, 0.0]) == pytest.approx({"p20": 1.0, "p50": 2.5, "p80": 4.0})


# --- gate and record ------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [0.2, math.nan])
def test_a_wrong_result_is_not_timed(error):
    called = []
    wrong = case(lambda: [common.Check("sum", error, 0.1)], ways={common.OURS: lambda: called.append(1)}, pairs=[])
    with pytest.raises(common.RedGate, match="noise tiny: no figures, the result is wrong"):
        common.measure(wrong, QUICK)
    assert not called


@pytest.mark.parametrize("name", ["noise", "norms", "output", "quantize", "update"])
def test_the_gate_of_each_operation_sees_one_wrong_element(name):
    """The backend computes the right thing, and then spoils the last sample a little."""
    from importlib import import_module

    right = QUICK.ops

    def spoiled(op, which):
        def call(*args, **kwargs):
            out = op(*args, **kwargs)
            target = args[which] if out is None else out
            target[-1].add_(1 if target.dtype == torch.uint8 else 1e-3)
            return out

        return call

    wrong = common.Setting(CPU, quick=True)
    ops = {"update": spoiled(right.update, 0), "langevin": spoiled(right.langevin, 5)}
    wrong.__dict__["ops"] = SimpleNamespace(name="spoiled", quantize=spoiled(right.quantize, 0), **ops)
    cases = import_module(f"bench_{name}").cases
    assert all(check.ok for check in next(cases(QUICK)).check())
    with pytest.raises(common.RedGate):
        common.measure(next(cases(wrong)), wrong)


def test_the_published_loops_agree_with_the_sampler(monkeypatch):
    import bench_sampler

    spec = {**bench_sampler.SPEC, "size": 8, "width": 8, "patch": 1}
    monkeypatch.setattr(bench_sampler, "SPEC", spec)
    monkeypatch.setattr(bench_sampler.fs, "bundled", list, raising=False)
    for found in bench_sampler.cases(QUICK):
        checks = found.check()
        assert [check for check in checks if not check.ok] == []
        assert {"eager equals the published loop", "stub, eager equals the published loop"} == {c.name for c in checks}
        seconds = {way: 1.0 + k for k, way in enumerate(found.ways)}
        shares = found.derive(seconds)["shares"]["eager"]
        assert sum(shares.values()) == pytest.approx(1.0)
        assert found.pairs == [
            ("fastscore, eager", "published, eager"), ("stub: fastscore, eager", "stub: published"),
        ]  # fmt: skip
    for loop in ("dpmpp_2m", "predictor_corrector"):
        exact = getattr(bench_sampler.baselines, loop)
        monkeypatch.setattr(bench_sampler.baselines, loop, lambda *a, exact=exact: exact(*a) * 1.001)
    for found in bench_sampler.cases(QUICK):
        with pytest.raises(common.RedGate, match="eager equals the published loop"):
            common.measure(found, QUICK)


def test_records_go_round(tmp_path):
    file, env = tmp_path / "deep" / "r.jsonl", records.environment(CPU)
    made = {"schema": records.SCHEMA, **common.measure(case(), QUICK), "env": env}
    records.append(file, made)
    records.append(file, {**made, "schema": records.SCHEMA + 1})
    assert records.load(file) == [json.loads(json.dumps(made))]
    assert set(made["seconds"]) == {common.OURS, common.EAGER, common.COPY}
    assert made["repeats"] >= 5
    assert {"device", "threads", "torch", "triton", "numpy", "git", "dirty", "tf32", "date"} <= set(env)
    assert records.results_file({"device": "NVIDIA H100 80GB"}).name == "nvidia-h100-80gb.jsonl"
    cost = made["cost"][common.OURS]
    assert all((f["value"] is None) == bool(f["reason"]) for f in cost.values())
    assert cost["power"]["reason"] == "no NVIDIA GPU in this run"


# --- report ---------------------------------------------------------------------------------------

ENV = {
    "device": "CPU (Fixture)", "type": "cpu", "cpu": "Fixture", "threads": 2, "load": 0.1, "power_limit_w": None,
    "cuda": None, "torch": "2.9", "triton": None, "tf32": {}, "git": "abc", "dirty": True,
    "date": "2026-01-02T03:04:05",
}  # fmt: skip


def op_record(**changes) -> dict:
    seconds = {w: common.spread([s]) for w, s in ((common.OURS, 2e-3), (common.EAGER, 1e-3), (common.COPY, 1e-4))}
    return {
        "schema": 1, "bench": "update", "case": "64x1x28x28", "quick": False, "env": ENV, "seconds": seconds,
        "ratios": [{"of": common.OURS, "over": common.EAGER, "p20": 0.4, "p50": 0.5, "p80": 0.6}],
        "skipped": {common.COMPILED: "no C++ compiler"}, "facts": {"backend": "reference"}, "derived": {}, "cost": {},
        "bandwidth": {"bytes": 1, "gb_per_s": 1.25, "copy_gb_per_s": 25.0, "percent_of_copy": 5.0}, **changes,
    }  # fmt: skip


def test_tables_say_where_fastscore_loses():
    text = report.tables([op_record(), op_record(case="red one", red="wrong")])
    assert "| update | 64x1x28x28 | reference | 2 ms | 1 ms |  | 100 us | 0.50 |  | 1.2 | 5 % |" in text
    assert "**wrong result, not timed**" in text
    assert "CPU figures: they say nothing about a GPU" in text
    assert "commit abc with uncommitted changes" in text and "2026-01-02" in text
    assert "0.50 (0.40 .. 0.60) times the speed of eager: SLOWER" in report.text(op_record())


def test_the_latest_record_counts_and_quick_ones_do_not():
    old, new, quick = op_record(), op_record(facts={"backend": "cpp"}), op_record(quick=True)
    assert report.latest([old, new, quick]) == [new]
    assert "mean nothing" in report.tables([quick])


def test_sampler_table():
    ways = {"fastscore, eager": 2.0, "published, eager": 3.0}
    made = op_record(
        bench="sampler", case="PC", seconds={w: common.spread([s]) for w, s in ways.items()},
        ratios=[{"of": "fastscore, eager", "over": "published, eager", "p20": 1.4, "p50": 1.5, "p80": 1.6}],
        items={"count": 64, "name": "sample"}, skipped={"loop graph": "needs a CUDA device"},
        facts={"backend": "reference", "prepare": {"eager": {"first_s": 1.0, "capture_s": 0.5}}},
        derived={
            "rates": {w: {"samples_per_s": 64 / s, "nfe_per_s": 20 / s} for w, s in ways.items()},
            "shares": {"eager": {"net": 0.9, "update": 0.2, "gap": -0.1}},
            "outside_ms_per_step": {"fastscore, eager": 0.25, "published": 0.5},
        },
    )  # fmt: skip
    text = report.tables([made], ops=False)
    assert "| fastscore, eager | 32 | 32 .. 32 | 1.50 |  | 90% | 20% | -10% | 0.250 | 1.5 s |  |" in text
    assert "| published, eager | 21.33 | 21.33 .. 21.33 |  |  |  |  |  | 0.500 |  |  |" in text
    assert "skipped: needs a CUDA device" in text


def test_only_what_stands_between_markers_changes():
    assert records.between("a <!-- bench -->old<!-- /bench --> b", "bench", "new").split() == [
        "a", "<!--", "bench", "-->", "new", "<!--", "/bench", "-->", "b",
    ]  # fmt: skip
    assert records.between("nothing here", "bench", "new") == "nothing here"


# --- telemetry ------------------------------------------------------------------------------------


class FakeNVML:
    """Answers from a table; a value that is an exception is raised, a list is read one by one."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2

    class NVMLError(Exception):
        pass

    def __init__(self, **answers):
        self.answers = {
            "nvmlInit": None, "nvmlShutdown": None, "nvmlDeviceGetHandleByUUID": "gpu",
            "nvmlDeviceGetEnforcedPowerLimit": 700_000, "nvmlDeviceGetPowerUsage": 300_000,
            "nvmlDeviceGetClockInfo": 1980, "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=3 * 2**20),
            "nvmlDeviceGetCurrentClocksEventReasons": 0x04 | 0x01,
            "nvmlDeviceGetTotalEnergyConsumption": [1_000_000, 1_060_000], **answers,
        }  # fmt: skip

    def __getattr__(self, name: str):
        def call(*_):
            value = self.answers[name]
            value = value.pop(0) if isinstance(value, list) else value
            if isinstance(value, Exception):
                raise value
            return value

        return call


def figures(nvml, items: int = 10) -> dict[str, telemetry.Figure]:
    ticks = iter(range(1000))
    with telemetry.Meter("GPU-1", nvml, interval=60.0, now=lambda: float(next(ticks))) as meter:
        meter.poll()
    found = meter.report(items)
    assert all(f.value != 0 and (f.value is None) == bool(f.reason) for f in found.values())
    return found


def test_telemetry_reads_what_there_is():
    found = figures(FakeNVML())
    assert found["energy_per_item"] == telemetry.Figure(6.0, "J", how="energy counter")
    assert (found["power"].value, found["power_limit"].value, found["memory_used"].value) == (300.0, 700.0, 3.0)
    assert found["throttled"].value == "power cap"


def broken(reason: str) -> Exception:
    return FakeNVML.NVMLError(reason)


@pytest.mark.parametrize(
    ("counter", "how"),
    [
        (broken("Not Supported"), "NVML: Not Supported"),
        ([2**32 - 5, 100], "the energy counter went backwards"),
        ([500, 500], "the energy counter did not advance"),
    ],
)
def test_energy_without_a_counter_is_integrated_power(counter, how):
    found = figures(FakeNVML(nvmlDeviceGetTotalEnergyConsumption=counter))["energy_per_item"]
    assert found.value == 8 * 300.0 / 10  # three readings of power, four ticks apart, for ten items
    assert how in found.how


def test_no_counter_and_no_power_is_null():
    nothing = broken("No Permission")
    found = figures(FakeNVML(nvmlDeviceGetTotalEnergyConsumption=nothing, nvmlDeviceGetPowerUsage=nothing))
    assert found["energy_per_item"].value is None and "No Permission" in found["energy_per_item"].reason
    assert found["power"].reason == "NVML: No Permission"
    assert found["sm_clock"].value == 1980


def test_zero_watts_is_not_a_measurement():
    found = figures(FakeNVML(nvmlDeviceGetPowerUsage=0, nvmlDeviceGetTotalEnergyConsumption=[5, 5]))
    assert found["power"].value is None and found["energy_per_item"].value is None


def test_a_gpu_that_is_lost_half_way_gives_no_means():
    lost = broken("GPU is lost")
    found = figures(FakeNVML(
        nvmlDeviceGetPowerUsage=[300_000, lost], nvmlDeviceGetClockInfo=[1980, 2600, lost, lost],
        nvmlDeviceGetMemoryInfo=lost, nvmlDeviceGetCurrentClocksEventReasons=[0, lost],
        nvmlDeviceGetTotalEnergyConsumption=[1_000, lost], nvmlShutdown=lost,
    ))  # fmt: skip
    absent = {name for name, f in found.items() if f.reason == "NVML: GPU is lost"}
    assert absent >= {"power", "sm_clock", "memory_clock", "memory_used", "throttled"}
    assert found["energy_per_item"].value is None


@pytest.mark.parametrize("call", ["nvmlInit", "nvmlDeviceGetHandleByUUID"])
def test_no_driver(call):
    found = figures(FakeNVML(**{call: broken("Driver Not Loaded")}))
    assert {f.reason for f in found.values()} == {"NVML: Driver Not Loaded"}


def test_no_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert {f.reason for f in figures(None).values()} == {"nvidia-ml-py is not installed"}


def test_the_real_library_without_a_driver_says_so():
    if torch.cuda.is_available():
        pytest.skip("shows what is said without an NVIDIA driver; this machine has one")
    with telemetry.Meter("GPU-none") as meter:
        pass
    assert all(f.value is None and f.reason.startswith("NVML: ") for f in meter.report(1).values())


def test_a_meter_ends_with_its_block():
    with telemetry.Meter("GPU-1", FakeNVML(), interval=3600.0) as meter:
        assert meter._thread.is_alive()
    assert not meter._thread.is_alive()


# --- command line ---------------------------------------------------------------------------------


def test_names_are_stems(capsys):
    assert run.NAMES == ["noise", "norms", "output", "peers", "quantize", "sampler", "update"]
    with pytest.raises(SystemExit) as stop:
        run.main(["noise", "typo"])
    assert stop.value.code == 2
    assert (
        "no bench called typo; there are noise, norms, output, peers, quantize, sampler, update"
        in capsys.readouterr().err
    )


def test_help_imports_no_torch():
    code = "import sys, run\ntry: run.main(['--help'])\nexcept SystemExit: sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "bench", stdout=subprocess.DEVNULL)
    assert done.returncode == 0


def test_a_quick_run(tmp_path, capsys):
    file, md = tmp_path / "r.jsonl", tmp_path / "r.md"
    assert run.main(["quantize", "--quick", "--device", "cpu", "--json", str(file), "--md", str(md)]) == 0
    made = records.load(file)
    assert [r["bench"] for r in made] == ["quantize"] and made[0]["quick"]
    assert "torch.compile" in made[0]["skipped"] and "skipped: --quick" in capsys.readouterr().out
    assert "| quantize | 64x1x28x28 |" in md.read_text()


def test_a_red_gate_is_the_exit_code(tmp_path, monkeypatch, capsys):
    import bench_quantize

    red = case(lambda: [common.Check("bytes", 1.0, 0.0)])
    monkeypatch.setattr(bench_quantize, "cases", lambda setting: [red])
    assert run.main(["quantize", "--quick", "--device", "cpu", "--json", str(tmp_path / "r.jsonl")]) == 1
    assert "RED" in capsys.readouterr().out
    assert "seconds" not in records.load(tmp_path / "r.jsonl")[0]


def test_validation_without_a_gpu_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert validate_gpu.main([]) == 3
    assert capsys.readouterr().out == "no CUDA device on this machine: nothing validated\n"


def test_validation_runs_every_step_whatever_fails(tmp_path, monkeypatch):
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
    text = validate_gpu.markdown(ENV, done, "TABLES")
    assert "| pytest -m gpu | **FAILED** |" in text and "| compute-sanitizer | could not run |" in text


def test_the_network_tables_show_every_numerics():
    import network as bench_network

    spread = {"p20": 1.9, "p50": 2.0, "p80": 2.1}
    rate = {"images_per_s": 100.0, "over_own": spread, "gflop_per_s": 30.0, "share_of_product": spread}
    row = {
        "network": "n",
        "alpha_over_sigma": [0.0, 1.0, 500.0],
        "score_error": {"fp32": [1e-6, 2e-6, 3e-6], "bf16": [1e-3, 5e-3, 2e-3]},
        "rates": dict.fromkeys(("own", "fp32", "bf16"), rate),
    }
    judged = {
        "num": 9,
        "steps": 20,
        "classifier-FID": {"own": 0.05, "bf16": 0.06},
        "mean_pixel_difference": {"bf16": 0.4},
    }
    head = {"hardware": "h", "threads": 1, "clock": "CPU time", "torch": "2", "date": "d"}
    text = bench_network.table({**head, "networks": [row], "quality": judged})
    assert "| n | package, bf16 | 100 | 2.00 (1.90 to 2.10) | 30 | 200% | 5.0e-03 |" in text
    assert "| n | inf | 1.0e-06 | 1.0e-03 |" in text
    assert "eager float32 0.0500, bf16 0.0600" in text
