"""End to end: samples a second at a fixed number of network evaluations, and where the time goes.

Claim: outside the network the engine costs next to nothing. Each solver runs in fastscore's modes and as
published code runs it (baselines.py), same network, same weights, same noise; both must give the same
samples first. Timed in the same rounds: the same loops around a stub of constant time, and the network
alone. Of a run of T seconds, net = the evaluations alone, update = the run around the stub, gap = the
rest. On a GPU both are the device's time, of one graph of all evaluations and one of all rows: they then
are parts of the run's, whatever the host does, and gap is what the device waits.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import fastscore as fs
from bench.common import REDUCED, Case, Check, Setting, Work
from bench.engine import baselines
from fastscore.model.nets import build
from fastscore.ops.noise import NoiseKey

SIGMA_MIN, SIGMA_MAX, SNR, SEED = 0.01, 50.0, 0.16, 0
SPEC = {"name": "UNet", "channels": 1, "size": 28, "width": 64, "mult": [1, 2], "blocks": [2, 1], "patch": 2,
        "classes": 10}  # fmt: skip
# Of the largest |x|: two loops round differently, and a network amplifies it; LOOSE where it runs in fewer bits.
TOLERANCE, LOOSE = {"own": 1e-4, "compile": 1e-4, "regional": 1e-4, "fp32": 1e-3}, 0.05
TITLES = {"own": "eager", "compile": "compiled"}
ROWS = "rows alone"


def cases(setting: Setting) -> Iterator[Case]:
    """Yield one case a solver."""
    model, name = score_model(setting.device)
    batch, steps = (4, 4) if setting.quick else (setting.batch or 64, 20)
    for solver in (DPMpp2M(steps), PC(max(2, steps // 2))):
        yield Bench(setting, model, name, batch, solver).case()


@dataclass(frozen=True)
class DPMpp2M:
    """DPM-Solver++(2M) on EDM's noise levels."""

    steps: int
    name = "DPM-Solver++(2M)"

    def sampler(self, model: fs.ScoreModel, execution: fs.Execution) -> fs.Sampler:
        """Return fastscore's."""
        schedule = fs.EDM(SIGMA_MIN, SIGMA_MAX)
        grid = fs.karras(self.steps)
        return fs.Sampler(model, schedule=schedule, solver=fs.DPMpp2M(), grid=grid, execution=execution)

    def published(self, denoise: baselines.Denoiser, x: Tensor, draw: baselines.Draw) -> Tensor:
        """Run the published loop."""
        knots = fs.karras(self.steps)(fs.EDM(SIGMA_MIN, SIGMA_MAX))
        return baselines.dpmpp_2m(denoise, x, torch.tensor(knots, dtype=torch.float32, device=x.device))


@dataclass(frozen=True)
class PC:
    """Song's predictor-corrector on VE, one Langevin step a time, norms averaged over the batch."""

    steps: int
    name = "PC, Langevin"

    def sampler(self, model: fs.ScoreModel, execution: fs.Execution) -> fs.Sampler:
        """Return fastscore's."""
        solver = fs.ScoreSDE(corrector=fs.Langevin(SNR, norm="batch"))
        schedule, grid = fs.VE(SIGMA_MIN, SIGMA_MAX), fs.uniform(self.steps)
        return fs.Sampler(model, schedule=schedule, solver=solver, grid=grid, execution=execution)

    def published(self, denoise: baselines.Denoiser, x: Tensor, draw: baselines.Draw) -> Tensor:
        """Run the published loop."""
        return baselines.predictor_corrector(denoise, x, self.steps, SIGMA_MIN, SIGMA_MAX, SNR, draw)


class Bench:
    """One solver in every mode, around the network and around a stub."""

    def __init__(self, setting: Setting, model: fs.ScoreModel, name: str, batch: int, solver: DPMpp2M | PC) -> None:
        self.setting, self.model, self.name, self.batch, self.solver = setting, model, name, batch, solver
        self.labels = torch.arange(batch, device=setting.device) % model.classes if model.classes else None
        constant = torch.full((batch, *model.shape), 0.1, device=setting.device)
        self.stub = replace(model, net=lambda u, t, cond: constant)
        self.variants: dict[str, Work] = {}
        self.pairs: list[tuple[str, str]] = []
        self.skipped: dict[str, str] = {}
        self.prepared: dict[str, Any] = {}
        self.samplers: dict[str, fs.Sampler] = {}
        self.stubs: dict[str, fs.Sampler] = {}
        self.kind: dict[str, str] = {}  # of each mode: how its network runs

    def case(self) -> Case:
        """Build every sampler, which compiles and captures, and return the case."""
        last = "own"
        for network in ("own", *(name for name in self.setting.networks if name != "own")):
            title = TITLES.get(network, f"network {network}")
            if network != "own" and self.setting.no_compile:
                self.skipped[title] = self.setting.no_compile
                continue
            self.add(title, title, "off", network)
            last = network
        kinds = list(self.samplers)
        for graph in ("step", "loop"):
            try:
                self.add(f"{graph} graph", kinds[-1], graph, last)
            except ValueError as error:  # no CUDA device, or a network that cannot be captured
                self.skipped[f"{graph} graph"] = str(error)
        for kind in kinds:
            net = self.samplers[kind].prepared.net
            self.variants[f"published, {kind}"] = self.published(net)
            self.variants[f"network alone, {kind}"] = self.alone(net)
        if self.setting.graphs:
            self.variants[ROWS] = self.stubs["eager"].engine.loop.run  # pyright: ignore[reportAttributeAccessIssue]
            if not self.setting.no_compile:
                net = torch.compile(self.model.net, fullgraph=True, dynamic=False, mode=REDUCED)
                self.variants[f"published, {REDUCED}"] = self.published(net)
        for mode in self.samplers:
            counterparts = ["eager"] if mode == "eager" else kinds
            if mode.endswith("graph") and f"published, {REDUCED}" in self.variants:
                counterparts = [*kinds, REDUCED]
            self.pairs += [(f"fastscore, {mode}", f"published, {kind}") for kind in counterparts]
            self.pairs.append((f"stub: fastscore, {mode}", "stub: published"))
        self.variants["stub: published"] = self.published(self.stub.net)
        plan = self.samplers["eager"].plan
        facts = {
            "backend": self.setting.ops.name,
            "network": self.name,
            "weights_sha256": fingerprint(self.model.net),
            "nfe": plan.nfe,
            "steps": self.solver.steps,
            "batch": self.batch,
            "prepare": self.prepared,
            "samplers": {mode: sampler.record() for mode, sampler in self.samplers.items()},
        }
        shape = "x".join(str(k) for k in (self.batch, *self.model.shape))
        name = f"{self.solver.name}, {plan.nfe} evaluations, {shape}, {self.name}"
        return Case(
            "sampler", name, self.variants, self.pairs, self.check, (self.batch, "sample"), facts=facts,
            skipped=self.skipped, derive=self.derive,
            costed=[name for name in self.variants if name.startswith(("fastscore", "published"))],
            recorded=[name for name in self.variants if name.startswith("network alone") or name == ROWS],
        )  # fmt: skip

    def add(self, mode: str, kind: str, graph: str, network: str) -> None:
        """Add fastscore in one mode, with the network and with the stub."""
        execution = self.setting.execution(self.batch, graph=graph, network=network)
        sampler = self.solver.sampler(self.model, execution)
        around = self.solver.sampler(self.stub, replace(execution, network="own"))
        self.prepared[mode] = sampler.warm_up()
        around.warm_up()
        self.samplers[mode], self.stubs[mode], self.kind[mode] = sampler, around, kind
        self.variants[f"fastscore, {mode}"] = self.ours(sampler)
        self.variants[f"stub: fastscore, {mode}"] = self.ours(around)

    def ours(self, sampler: fs.Sampler) -> Callable[[], Tensor]:
        """Return a call of the public function, checks and copies included."""
        return lambda: sampler.run(range(self.batch), SEED, labels=self.labels)

    def published(self, net: Callable[..., Tensor], draw: baselines.Draw = torch.randn_like) -> Callable[[], Tensor]:
        """Return the published loop around a network."""
        denoise = baselines.edm_denoiser(net, self.model.parametrization.sigma_data, self.labels)
        like = torch.empty((self.batch, *self.model.shape), device=self.setting.device)
        return lambda: self.solver.published(denoise, draw(like) * SIGMA_MAX, draw)

    def alone(self, net: Callable[..., Tensor]) -> Work:
        """Return the evaluations of a run, without what lies between them."""
        u = torch.linspace(
            -1.0, 1.0, self.batch * int(torch.Size(self.model.shape).numel()), device=self.setting.device
        )
        u, label = u.reshape(self.batch, *self.model.shape), torch.zeros(self.batch, device=self.setting.device)
        nfe = self.samplers["eager"].plan.nfe

        def work() -> None:
            for _ in range(nfe):
                net(u, label, self.labels)

        return work

    @torch.no_grad()
    def check(self) -> list[Check]:
        """Compare every mode with the published loop on the noise that fastscore generates."""
        checks = []
        for net, samplers, note in ((self.model.net, self.samplers, ""), (self.stub.net, self.stubs, "stub, ")):
            key, draws = NoiseKey.of(SEED, range(self.batch)), itertools.count()

            def draw(x: Tensor, key: NoiseKey = key, draws: Iterator[int] = draws) -> Tensor:
                return key.normal(next(draws), x[0].numel()).reshape(x.shape).to(x.device)

            expected = self.published(net, draw)()
            for mode, sampler in samplers.items():
                error = (self.ours(sampler)() - expected).abs().max() / expected.abs().max()
                bound = self.setting.tolerance(TOLERANCE.get(sampler.execution.network, LOOSE))
                checks.append(Check(f"{note}{mode} equals the published loop", float(error), bound))
        return checks

    def derive(self, seconds: dict[str, float]) -> dict[str, Any]:
        """Return rates, shares, and the time outside the network."""
        rates, shares, outside = {}, {}, {}
        nfe = self.samplers["eager"].plan.nfe
        for name, total in seconds.items():
            source, _, mode = name.partition(", ")
            alone = (f"network alone, {self.kind.get(mode)}", ROWS if ROWS in seconds else f"stub: {name}")
            if source == "fastscore" and not any(f"graph of {part}" in self.skipped for part in alone):
                net, update = (seconds[part] / total for part in alone)
                shares[mode] = {"net": net, "update": update, "gap": 1.0 - net - update}
            if source in ("fastscore", "published"):
                rates[name] = {"samples_per_s": self.batch / total, "nfe_per_s": nfe / total}
            if name.startswith("stub: "):
                outside[name.removeprefix("stub: ")] = 1000.0 * total / self.solver.steps
        return {"rates": rates, "shares": shares, "outside_ms_per_step": outside}


def score_model(device: torch.device) -> tuple[fs.ScoreModel, str]:
    """Return the bundled model, or the same network with arbitrary weights, and what it is called."""
    for name in fs.bundled():
        model = fs.load_model(name, device)
        if model.parametrization.prediction == "edm" and len(model.shape) == 3:
            return model, name
    return random_model(SPEC, device), "random weights"


def random_model(spec: dict[str, Any], device: torch.device) -> fs.ScoreModel:
    """Return a model of a spec with arbitrary weights."""
    torch.manual_seed(0)
    net = build(spec).to(device).eval()
    with torch.no_grad():
        for p in net.parameters():  # its last layer starts at zero, which would hide a wrong step
            if not p.any():
                p.normal_(std=0.02)
    shape = (spec["channels"], spec["size"], spec["size"])
    classes = spec.get("classes", 0)
    return fs.ScoreModel(
        net, shape, fs.EDM(), fs.Parametrization("edm", "log_sigma/4"), classes=classes, null=classes or None
    )


def fingerprint(net: Any) -> str:
    """Return a digest of a network's weights."""
    digest = hashlib.sha256()
    for tensor in net.state_dict().values():
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
