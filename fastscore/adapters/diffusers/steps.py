"""The steps of a run as pipelines of diffusers ask for them, without diffusers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastscore.adapters.diffusers.config import guide_of, prediction_of
from fastscore.adapters.diffusers.grids import knots_of
from fastscore.adapters.diffusers.noise import fresh_seed, seeds_and_ids, seeds_of
from fastscore.adapters.diffusers.schedules import schedule_of
from fastscore.adapters.diffusers.timeline import Timeline, check_turn, stage_at
from fastscore.engine.stepper import Stepper
from fastscore.execution import Execution
from fastscore.guidance.denoiser import Guide
from fastscore.ops.noise import NoiseKey
from fastscore.plan.rows import Solver
from fastscore.process.continuous import Flow
from fastscore.process.grid import Times
from fastscore.process.parametrization import Parametrization
from fastscore.process.schedule import diffuse

LEARNED = ("learned", "learned_range")


@dataclass
class Stepped:
    """The state after a step."""

    prev_sample: Tensor


class Steps:
    """A solver's rows, one network call of a pipeline at a time: see ``Scheduler``.

    Attributes:
        config: entries as of ``Scheduler``.
        solver, schedule, parametrization, guide: what a Sampler of the same network would be given.
        timesteps: what the network is told, one a call.
        sigmas: sigma / alpha of each (sigma of a flow), and of the end.
        seeds, ids: of the noise of the last run; None before its first step.
    """

    config: Mapping[str, Any]

    def lay_out(self, solver: Solver) -> None:
        """Take the solver, and read the config."""
        config = self.config
        self.solver, self.schedule = solver, schedule_of(config)
        self.parametrization = Parametrization(prediction_of(config), "t")
        self.num_inference_steps: int | None = None
        self.seeds: int | list[int] | None = None
        self.ids: list[int] | None = None
        self._said: tuple[int | Sequence[int] | None, Sequence[int] | None] = config["seed"], None
        self._shift: float | None = None
        self._begin_index: int | None = None
        self._step_index: int | None = None
        self._stepper: Stepper | None = None
        self._stepper_of: Any = None
        n, flow = config["num_train_timesteps"], isinstance(self.schedule, Flow)
        trained = np.arange(n, 0.0, -1.0) / n if flow else np.arange(self.schedule.T, -1.0, -1.0)
        some = dict.fromkeys(trained[[k * len(trained) // 6 for k in range(6)]].tolist())  # enough to count evaluations
        self._timeline = self._along((*some, self.schedule.t_clean))
        self._show(trained.tolist(), [*map(self._timeline.level, trained.tolist()), 0.0])

    @property
    def guide(self) -> Guide | None:
        """What happens to the estimate of x0. Pipelines change entries of the config when they take a scheduler."""
        return guide_of(self.config)

    def __len__(self) -> int:
        return self.config["num_train_timesteps"]

    @property
    def order(self) -> int:
        """Evaluations of a step; the first ones of a solver that warms up may take more, the last one fewer."""
        return self._timeline.order

    @property
    def knots(self) -> tuple[float, ...]:
        """The times between which the steps go, in those of ``schedule``."""
        return self._timeline.knots

    @property
    def init_noise_sigma(self) -> float:
        """The standard deviation of the state that a run starts from: 1."""
        return 1.0

    @property
    def begin_index(self) -> int | None:
        """The stage that a run begins with, as ``set_begin_index`` said."""
        return self._begin_index

    @property
    def step_index(self) -> int | None:
        """The stage that ``step`` does next; None before the first one."""
        return self._step_index

    @property
    def shift(self) -> float:
        """The shift of a flow's grid."""
        return self.config["shift"] if self._shift is None else self._shift

    def set_shift(self, shift: float) -> None:
        """Take another shift for the grids to come."""
        self._shift = float(shift)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Say which stage, an index into ``timesteps``, the run begins with."""
        self._begin_index = int(begin_index)

    def set_seed(self, seed: int | Sequence[int] | None, ids: Sequence[int] | None = None) -> None:
        """Say seed and id of each image, of runs whose pipeline passes no generators; see ``seeds_and_ids``."""
        self._said = (seed, ids)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        sigmas: Any = None,
        timesteps: Any = None,
        mu: float | None = None,
    ) -> None:
        """Lay out the steps of a run.

        Args:
            num_inference_steps: steps, each of ``order`` network calls at most.
            device: of ``timesteps`` and ``sigmas``.
            sigmas, timesteps, mu: see ``knots_of``. Both lists: noise levels, and what the network is told of them.

        Raises:
            ValueError: see ``knots_of``; times of their own for a solver that asks between them.
        """
        arguments = (num_inference_steps, sigmas, timesteps if sigmas is None else None, mu, self._shift)
        knots = knots_of(self.config, self.schedule, *arguments)
        timeline = self._along(knots)
        if timeline != self._timeline:
            self._timeline, self._stepper = timeline, None
        self._begin_index = self._step_index = None
        stages, scale = self._timeline.stages, self.per_time
        labels = [scale * stage.c_noise for stage in stages]
        if sigmas is not None and timesteps is not None:
            if len(timesteps) != len(labels):
                raise ValueError(f"{len(timesteps)} timesteps for the {len(labels)} network calls of {self.solver}")
            labels = [float(t) for t in timesteps]
        self.num_inference_steps = len(knots) - 1
        self._show([label / scale for label in labels], self._timeline.sigmas, device)

    def _along(self, knots: tuple[float, ...]) -> Timeline:
        return Timeline(self.solver, self.schedule, self.parametrization, self.guide, knots)

    @property
    def per_time(self) -> float:
        """What the network is told, for a time of the schedule of 1."""
        return float(self.config["num_train_timesteps"]) if isinstance(self.schedule, Flow) else 1.0

    def _show(self, times: list[float], sigmas: list[float], device: torch.device | str | None = None) -> None:
        whole = not isinstance(self.schedule, Flow) and all(t.is_integer() for t in times)
        labels = torch.tensor([self.per_time * t for t in times], dtype=torch.float64)
        self.timesteps = labels.to(device, torch.int64 if whole else torch.float32)
        self.sigmas = torch.tensor(sigmas, dtype=torch.float32, device=device)
        self._labels: list[float] = self.timesteps.tolist()

    def index_for_timestep(self, timestep: Any, schedule_timesteps: Tensor | None = None) -> int:
        """Return the stage of a time of the network: the second one where it occurs twice, at which a step begins.

        Raises:
            ValueError: no stage has this time.
        """
        return stage_at(self._labels if schedule_timesteps is None else schedule_timesteps.tolist(), timestep)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """Return the state as it is, which is what the network reads."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Any = None,
        return_dict: bool = True,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
    ) -> Any:
        """Return the state after the rows of this stage, as ``.prev_sample`` or as a tuple of one.

        Args:
            model_output: of the network at ``sample`` and ``timestep``, guidance included.
            timestep: the next one of ``timesteps``.
            sample: the state, [N, ..].
            generator: of the run's noise, one or a list of one an image; looked at in the first step.
            eta: 0; the solver has its own. use_clipped_model_output: either way; the noise follows a clipped estimate.

        Raises:
            ValueError: a step out of turn, or an ``eta``.
        """
        if eta:
            raise ValueError(f"eta = {eta} belongs to the solver: Scheduler('ddim', {{'eta': {eta}}})")
        if self._step_index is None:
            begin = self.index_for_timestep(timestep) if self._begin_index is None else self._begin_index
            self._begin(begin, sample, generator)
            self._step_index = begin
        assert self._stepper is not None
        check_turn(self._labels, self._step_index, timestep)
        if self.config["variance_type"] in LEARNED and model_output.shape[1] == 2 * sample.shape[1]:
            model_output = model_output[:, : sample.shape[1]]
        x = self._stepper.step(model_output, sample)
        self._step_index += 1
        return self._output(x) if return_dict else (x,)

    def _output(self, x: Tensor) -> Any:
        return Stepped(x)

    def _begin(self, stage: int, sample: Tensor, generator: Any) -> None:
        batch, dtype = len(sample), torch.float64 if sample.dtype == torch.float64 else torch.float32
        of = stage, tuple(sample.shape[1:]), batch, Execution(device=sample.device, dtype=dtype)
        if self._stepper is None or self._stepper_of != of:
            self._stepper, self._stepper_of = self._timeline.stepper(*of), of
        seeds, ids = self.noise(generator, batch)
        self._stepper.start(NoiseKey.of(seeds, ids), sample)

    def noise(self, generator: Any, batch: int) -> tuple[int | list[int], list[int]]:
        """Return seed and ids of a run of so many states, whose pipeline passed this generator, or none."""
        seeds, ids = self._said if generator is None else (seeds_of(generator), None)
        if seeds is None:
            seeds = fresh_seed() if self._timeline.noisy else 0
        repeated, self.ids = seeds_and_ids(seeds, ids, batch)
        self.seeds = seeds if isinstance(seeds, int) else list(seeds)
        return repeated, self.ids

    def rest(self, begin: int = 0) -> Times:
        """Return the grid from a stage on, at which a step begins."""
        return Times(self._timeline.after(begin))

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Any) -> Tensor:
        """Return alpha x_0 + sigma z, [N, ..] in the dtype of x_0.

        The level is that of each of ``timesteps``, [N]; but where ``set_begin_index`` was called, that of the stage
        which the run begins with, or has come to.
        """
        if self._begin_index is None:
            times = [float(t) / self.per_time for t in torch.as_tensor(timesteps).reshape(-1).tolist()]
        else:
            stage = self._begin_index if self._step_index is None else self._step_index
            times = [self._timeline.time(stage)]
        wide = original_samples.to(torch.promote_types(original_samples.dtype, torch.float32))
        return diffuse(self.schedule, wide, np.array(times), noise).to(original_samples.dtype)

    def scale_noise(self, sample: Tensor, timestep: Any, noise: Tensor) -> Tensor:
        """Return ``add_noise(sample, noise, timestep)``, as pipelines of flows call it."""
        return self.add_noise(sample, noise, timestep)
