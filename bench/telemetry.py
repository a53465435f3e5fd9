"""What a run costs besides time: power, energy, clocks, throttling and memory.

Every figure is either a value or null with a reason; 0 never stands for "unknown". GPU figures come
from NVML (nvidia-ml-py) and are those of the whole device: another process on it shows in them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

MIB = 2**20
# Bits of nvmlDeviceGetCurrentClocksEventReasons that mean a clock below what was asked for.
THROTTLE = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}


@dataclass(frozen=True)
class Figure:
    """A value with its unit, or None with the reason; ``how`` says where a value comes from."""

    value: float | str | None
    unit: str = ""
    reason: str | None = None
    how: str | None = None

    def __post_init__(self) -> None:
        assert (self.value is None) == (self.reason is not None), "a figure has a value or a reason, not both"


# Read again and again during a run: name -> (unit, reading, how readings become one figure).
_READINGS: dict[str, tuple[str, Callable[[Any, Any], float], Callable[[list[float]], float]]] = {
    "power": ("W", lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000.0, lambda v: sum(v) / len(v)),
    "sm_clock": ("MHz", lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM), min),
    "memory_clock": ("MHz", lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM), min),
    "memory_used": ("MiB", lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used / MIB, max),
}


class Meter:
    """Reads NVML before, during and after a ``with`` block; never raises, whatever the driver does.

    Args:
        uuid: of the GPU; CUDA's device numbers are not NVML's. None where there is no GPU.
        nvml: the NVML module; nvidia-ml-py's if left out.
        interval: seconds between readings.
        now: the clock of the readings.
    """

    def __init__(
        self, uuid: str | None, nvml: Any = None, interval: float = 0.02, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self.uuid, self.nvml, self.interval, self.now = uuid, nvml, interval, now
        self.reason = ""  # nothing can be read at all
        self.failed: dict[str, str] = {}  # a reading that failed, once failed for good
        self.values: dict[str, list[tuple[float, float]]] = {name: [] for name in _READINGS}
        self.throttled: set[str] = set()
        self.energy: list[float] = []
        self.limit: float | None = None

    def __enter__(self) -> Meter:
        self._open()
        if not self.reason:
            self.limit = self._read("power_limit", lambda: self.nvml.nvmlDeviceGetEnforcedPowerLimit(self.gpu) / 1000.0)
            self._count()
            self.poll()
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if not self.reason:
            self._stop.set()
            self._thread.join()
            self.poll()
            self._count()
            self._read("shutdown", self.nvml.nvmlShutdown)

    def report(self, items: int) -> dict[str, Figure]:
        """Return the figures of the block, in which ``items`` samples or elements were made."""
        figures = {name: self._summary(name) for name in _READINGS}
        figures["power_limit"] = self._single("power_limit", "W", self.limit)
        names = ", ".join(sorted(self.throttled)) or "none"
        figures["throttled"] = self._single("throttled", "", names)
        figures["energy_per_item"] = self._energy(items)
        return figures

    def poll(self) -> None:
        """Take one reading of everything."""
        if self.reason:
            return
        for name, (_, reading, _) in _READINGS.items():
            value = self._read(name, lambda reading=reading: reading(self.nvml, self.gpu))
            if value is not None:
                self.values[name].append((self.now(), value))
        bits = self._read("throttled", lambda: self.nvml.nvmlDeviceGetCurrentClocksEventReasons(self.gpu))
        if bits is not None:
            self.throttled |= {name for bit, name in THROTTLE.items() if int(bits) & bit}

    def _open(self) -> None:
        if self.uuid is None:
            self.reason = "no NVIDIA GPU in this run"
            return
        if self.nvml is None:
            try:
                import pynvml
            except ImportError:
                self.reason = "nvidia-ml-py is not installed"
                return
            self.nvml = pynvml
        try:
            self.nvml.nvmlInit()
            self.gpu = self.nvml.nvmlDeviceGetHandleByUUID(self.uuid)
        except self.nvml.NVMLError as error:
            self.reason = f"NVML: {error}"

    def _read(self, name: str, reading: Callable[[], Any]) -> Any:
        """Return a reading; after a failure never again, so that no mean is taken over half a run."""
        if name in self.failed:
            return None
        try:
            return reading()
        except self.nvml.NVMLError as error:
            self.failed[name] = f"NVML: {error}"
            return None

    def _watch(self) -> None:
        while not self._stop.wait(self.interval):
            self.poll()

    def _count(self) -> None:
        value = self._read("energy", lambda: self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.gpu))
        if value is not None:
            self.energy.append(value / 1000.0)

    def _single(self, name: str, unit: str, value: Any) -> Figure:
        reason = self.reason or self.failed.get(name, "")
        return Figure(None, unit, reason) if reason else Figure(value, unit)

    def _summary(self, name: str) -> Figure:
        unit, _, reduce = _READINGS[name]
        readings = [value for _, value in self.values[name]]
        reason = self.reason or self.failed.get(name, "")
        if not reason and not any(readings):
            reason = "the driver reports 0, which it cannot be"
        return Figure(None, unit, reason) if reason else Figure(reduce(readings), unit, how=f"{len(readings)} readings")

    def _energy(self, items: int) -> Figure:
        unit = "J"
        if self.reason:
            return Figure(None, unit, self.reason)
        problem = self.failed.get("energy", "")
        if not problem:
            before, after = self.energy
            if after > before:
                return Figure((after - before) / items, unit, how="energy counter")
            problem = "the energy counter went backwards" if after < before else "the energy counter did not advance"
        power = self.values["power"]
        if "power" in self.failed or not any(value for _, value in power):
            return Figure(None, unit, f"{problem}; power: {self._summary('power').reason}")
        steps = pairwise(power)
        joules = sum(0.5 * (p + q) * (t - s) for (s, p), (t, q) in steps)
        return Figure(joules / items, unit, how=f"power integrated over {len(power)} readings ({problem})")


def driver(nvml: Any = None) -> str | None:
    """Return the version of NVIDIA's driver; None where it cannot be read."""
    if nvml is None:
        try:
            import pynvml as nvml
        except ImportError:
            return None
    try:
        nvml.nvmlInit()
        version = nvml.nvmlSystemGetDriverVersion()
        nvml.nvmlShutdown()
    except nvml.NVMLError:
        return None
    return version.decode() if isinstance(version, bytes) else str(version)


def uuid_of(device: torch.device) -> str | None:
    """Return NVML's name of a CUDA device; None for any other device."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else None


def cost(work: Callable[[], object], items: int, device: torch.device, seconds: float) -> dict[str, dict[str, Any]]:
    """Repeat ``work``, which makes ``items`` a call, for some seconds; return the figures of its cost."""
    reset = reset_peak(device)
    calls, cpu, start = 0, time.process_time(), time.perf_counter()
    with Meter(uuid_of(device)) as meter:
        while calls == 0 or time.perf_counter() - start < seconds:
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            calls += 1
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    figures = meter.report(calls * items) | peak(device, reset)
    figures["host_cpu"] = Figure(100.0 * cpu / wall, "%", how="process time over wall time; 100 is one core")
    return {name: asdict(value) for name, value in figures.items()}


def reset_peak(device: torch.device) -> str | None:
    """Start a new high-water mark; return why there is none."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return None
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: resets VmHWM
    except OSError as error:
        return f"the kernel keeps no resettable high-water mark here ({error.strerror})"
    return None


def peak(device: torch.device, reason: str | None) -> dict[str, Figure]:
    if device.type == "cuda":
        allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        how = "what other variants keep allocated included"
        return {
            "peak_allocated": Figure(allocated / MIB, "MiB", how=how),
            "peak_reserved": Figure(reserved / MIB, "MiB", how=how),
        }
    if reason:
        return {"peak_resident": Figure(None, "MiB", reason)}
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = next(float(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return {"peak_resident": Figure(kib / 1024.0, "MiB", how="whole process, Python and torch included")}
