"""P6: images a second, from the constructor to the last one, against the same network in loops written by hand."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastscore as fs
from bench.card import nets
from bench.card.card import Card, Facts
from bench.clocks import HostClock
from bench.common import Setting
from bench.engine import baselines
from bench.peers import LIBRARIES, load_entries
from fastscore.ops.noise import NoiseKey

STEPS, SEED = 20, 0
SCHEDULE = fs.EDM(0.01, 50.0)
SETTINGS: dict[str, Any] = {"schedule": SCHEDULE, "solver": fs.DDIM()}
TOLERANCE = 0.02  # of the largest |x|: TF32 has ten bits, and a network amplifies them
LOOPS = ("eager", "torch.compile", "reduce-overhead", "CUDA graph")


class Bench:
    """One network at one batch, in fastscore's modes and in loops by hand."""

    def __init__(self, card: Card, name: str, batch: int) -> None:
        self.card, self.name, self.batch = card, f"{name} {batch}", batch
        self.model = nets.model(card, name)
        self.steps = card.pick(STEPS, 2)
        self.grid = fs.karras(self.steps)
        self.labels = {"labels": 1} if self.model.classes else {}
        self.images = card.pick({"fashion": 4096, "DDPM++": 256}[name], batch)

    def sampler(self, graph: str, model: fs.ScoreModel | None = None, **settings: Any) -> Any:
        """Return fastscore's."""
        settings = {**SETTINGS, "grid": self.grid, "batch": self.batch, **settings}
        return self.card.sampler(model or self.model, graph, **settings)

    def fastscore(self, graph: str, stub: bool = False, **settings: Any) -> Facts:
        """Return seconds to the first sample, what capture cost, and images a second."""
        model, held = self.model, self.held()
        if stub:
            constant = torch.full((self.batch, *model.shape), 0.1, device=self.card.device)
            model = replace(model, net=lambda u, t, cond: constant)
        made: list[Any] = []

        def first() -> None:
            made.append(self.sampler(graph, model, **settings))
            made[0].run([0], SEED, **self.labels)

        first_s = self.card.wall(first)
        warm = made[0].warm_up() if graph != "off" else {}
        pool = self.held() - held
        images = self.batch * max(1, self.images // self.batch)
        seconds = min(self.card.wall(lambda: made[0].run(range(images), SEED, **self.labels)) for _ in range(2))
        made[0].release()
        return {"images_per_s": images / seconds, "first_sample_s": first_s, "images": images, "pool_mib": pool, **warm}

    def held(self) -> float:
        """Return the MiB that torch holds of the device."""
        return 0.0 if self.card.dry else torch.cuda.memory_reserved(self.card.device) / 2**20

    def prior(self) -> Tensor:
        """Return what fastscore's samples start from."""
        z = NoiseKey.of(SEED, range(self.batch), self.card.device).normal(0, self.model.shape[0] * self.pixels)
        return z.reshape(self.batch, *self.model.shape) * float(SCHEDULE.prior_std)

    @property
    def pixels(self) -> int:
        """Of an image."""
        return self.model.shape[1] * self.model.shape[2]

    @torch.no_grad()
    def by_hand(self, kind: str) -> Facts:
        """Return images a second of DDIM around the network, as one writes it, and whether it gives the samples."""
        card, net = self.card, self.model.net
        if kind == "reduce-overhead":
            net = card.compile(net, mode="reduce-overhead")
        elif kind == "torch.compile":
            net = card.compile(net)
        label = None if not self.labels else torch.ones(self.batch, dtype=torch.int64, device=card.device)
        denoise = baselines.edm_denoiser(net, self.model.parametrization.sigma_data, label)
        knots, x0 = [float(s) for s in self.grid(SCHEDULE)], self.prior()
        out = torch.empty_like(x0)

        def loop() -> object:
            return out.copy_(baselines.ddim(denoise, x0, knots))

        first = HostClock()(lambda: (loop(), card.wait()), 1)
        run: Callable[[], object] = card.graph(loop) if kind == "CUDA graph" else loop
        rounds = max(1, self.images // self.batch // 2)
        run()
        seconds = min(card.wall(run, rounds) for _ in range(2))
        ours = self.sampler("off").run(range(self.batch), SEED, **self.labels)
        error = float((ours - out).abs().max() / ours.abs().max())
        return {"ok": error < TOLERANCE, "images_per_s": self.batch / seconds, "first_s": first, "difference": error}

    def items(self) -> dict[str, Callable[[], Facts]]:
        """Return what to measure."""
        found: dict[str, Callable[[], Facts]] = {}
        for graph in ("step", "off", "loop"):
            found[f"{self.name} fastscore, graph {graph}"] = partial(self.fastscore, graph)
        for kind in LOOPS:
            found[f"{self.name} by hand, {kind}"] = partial(self.by_hand, kind)
        found[f"{self.name} fastscore, graph step, stub"] = partial(self.fastscore, "step", stub=True)
        if not self.card.dry:
            found[f"{self.name} fastscore, graph step, network auto"] = partial(self.fastscore, "step", network="auto")
        return found


def prepared(card: Card, name: str, batch: int, made: list[Bench]) -> None:
    """Make the network."""
    made.append(Bench(card, name, batch))


def command(card: Card) -> Facts:
    """Return images a second of the command line, with everything that it starts and writes."""
    if find_spec("click") is None or not fs.bundled():
        return {"skipped": "click is not installed, or there is no bundled model"}
    with tempfile.TemporaryDirectory() as folder:
        count, batch, steps = card.pick((4096, 512, 20), (4, 4, 1))
        words = ["sample", "fashion", "-n", count, "--batch", batch, "--steps", steps, "--out", Path(folder) / "images"]
        words += ["--device", card.device, "--quiet", *card.pick([], ["--network", "own"])]
        line = [sys.executable, "-m", "fastscore", *map(str, words)]
        done: list[subprocess.CompletedProcess[str]] = []

        def run() -> None:
            limit = max(5.0, min(60.0, card.left()))
            done.append(subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=limit))

        seconds = HostClock()(run, 1)
    ok = done[0].returncode == 0
    tail = {} if ok else {"error": (done[0].stdout + done[0].stderr)[-800:]}
    return {"ok": ok, "images_per_s": count / seconds, "took_s": seconds, "images": count, **tail}


def peer(card: Card, adapter: str) -> Facts:
    """Return images a second of an installed library around the same kind of network."""
    from bench.peers.cases import Problem, peer_run

    entries = load_entries(adapter, card.pick(STEPS, 2))
    if isinstance(entries, str):
        return {"skipped": entries}
    problem = Problem(Setting(card.device, quick=card.dry))
    entry = entries[0]
    run = peer_run(entry, problem.model("eager", entry), problem.like)
    run()
    seconds = card.wall(run, card.pick(3, 1))
    return {"solver": entry.name, "batch": problem.batch, "images_per_s": problem.batch / seconds}


def run(card: Card) -> None:
    """Measure the small network first, then the command line, then the large one."""
    sizes = list(nets.sizes(card))
    for k, (name, batch) in enumerate(sorted(sizes, key=lambda size: size[0] != "fashion")):
        made: list[Bench] = []
        card.do(f"{name} {batch}", partial(prepared, card, name, batch, made))
        card.do_all(made[0].items() if made else {})
        if k == 0:
            card.do("fastscore sample", lambda: command(card))
    card.do_all({f"peer {adapter}": partial(peer, card, adapter) for adapter in card.pick(list(LIBRARIES), [])})
