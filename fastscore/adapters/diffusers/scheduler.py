"""A scheduler of diffusers whose step is a row of this engine. Importing this module imports diffusers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fastscore.adapters.diffusers.config import FLOWS, TABLES, complete
from fastscore.adapters.diffusers.library import library
from fastscore.adapters.diffusers.options import solver_of
from fastscore.adapters.diffusers.steps import Steps

_diffusers: Any = library("diffusers")
SchedulerMixin: Any = _diffusers.SchedulerMixin
_configuration: Any = library("diffusers.configuration_utils")
_utils: Any = library("diffusers.schedulers.scheduling_utils")


class Scheduler(Steps, SchedulerMixin, _diffusers.ConfigMixin):
    r"""Any solver with a plan as the scheduler of a diffusers pipeline.

        pipe.scheduler = fastscore.Scheduler.from_config(pipe.scheduler.config, solver="dpmpp-2m")

    A step is the row of the plan that ``Sampler`` runs, computed in float32 (float64 for a float64 state) and returned
    in the dtype of the pipeline's state; no gradients go through it. The state is x_t = alpha x_0 + sigma z of the
    config's schedule, also where the replaced scheduler kept x_t / alpha.

    Noise belongs to (seed, id): of a list of generators each image has the seed of its own and id 0, so that image k
    of a batch is the image that generator k gives alone; of one generator the images have ids 0, 1, ..; a generator
    counts by the seed that it was made with, not by what was drawn from it. Pipelines that pass no generator (SD3,
    Flux, LTX, Wan, DiT) get ``seed``, or what ``set_seed`` said, or else a seed that the first step takes from torch's
    global generator; ``seeds`` says which. The state that a run starts from is the pipeline's.

    Args:
        solver: a name of solvers/names.py, the name of a class of fastscore.solvers, or an object of one.
        solver_options: arguments of that name, plain values; see ``solver_of``.
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, rescale_betas_zero_snr: the table that
            the network was trained on.
        prediction_type: "epsilon", "v_prediction", "sample", or "flow_prediction" for a rectified flow in place of a
            table.
        clip_sample, clip_sample_range, thresholding, dynamic_thresholding_ratio, sample_max_value: what happens to the
            estimate of x_0; the noise follows it (DDIM's use_clipped_model_output). Not clipped if left out.
        timestep_spacing: "leading", "trailing", "linspace", or another name of process.names.GRIDS; of tables.
        steps_offset, use_karras_sigmas, use_exponential_sigmas, set_alpha_to_one, final_sigmas_type: of the grid.
        shift, use_dynamic_shifting, time_shift_type, shift_terminal, use_flow_sigmas: of a flow's grid; base_shift,
            max_shift, base_image_seq_len, max_image_seq_len: for the pipelines that compute mu with them.
        variance_type: if learned, the second half of the network's channels is dropped: a solver has its own variance.
        seed: of runs without generators, one or one an image.

    Raises:
        ValueError: an adaptive solver; a table, prediction or grid that cannot be.
    """

    __module__ = "fastscore"  # where a saved pipeline, or a pickle, finds it again
    _compatibles = [*TABLES, *FLOWS]

    @_configuration.register_to_config
    def __init__(
        self,
        solver: Any = "dpmpp-2m",
        solver_options: Mapping[str, Any] | None = None,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        set_alpha_to_one: bool = True,
        final_sigmas_type: str = "zero",
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float = 0.5,
        max_shift: float = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        time_shift_type: str = "exponential",
        shift_terminal: float | None = None,
        use_flow_sigmas: bool = False,
        variance_type: str = "fixed_small",
        seed: int | Sequence[int] | None = None,
    ) -> None:
        solver, name, options = solver_of(solver, solver_options)
        # All entries count as set: a default of ours that another scheduler does not share goes with them.
        self.register_to_config(solver=name, solver_options=options, _use_default_values=[])
        self.lay_out(solver)

    def _output(self, x: Tensor) -> Any:
        return _utils.SchedulerOutput(prev_sample=x)

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Return a scheduler of another one's config, its defaults included, with entries changed by keyword.

        Raises:
            ValueError: see ``complete``.
        """
        if isinstance(config, Mapping):
            config = complete({**config, **kwargs})
        return super().from_config(config, return_unused_kwargs, **kwargs)
