"""Power, energy, clocks and memory, read from a fake NVML."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from bench import telemetry


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


def test_the_drivers_version_is_known_or_not():
    assert telemetry.driver(FakeNVML(nvmlSystemGetDriverVersion=b"580.1")) == "580.1"
    assert telemetry.driver(FakeNVML(nvmlInit=broken("Driver Not Loaded"))) is None


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
