"""The denoising loop of a modular pipeline, all of it run by a Sampler: one call, so that CUDA graphs stay."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from fastscore.adapters.diffusers.steps import Steps
from fastscore.model.score import ScoreModel
from fastscore.sampler import Sampler

STEPPING = {"generator", "eta", "latents", "noise_pred"}  # what a block that only steps the scheduler reads


def whole_loop(block: Any, **execution: Any) -> Any:
    """Return a denoising block of a modular pipeline whose loop is ours.

        denoise = blocks.sub_blocks["denoise"]
        blocks.sub_blocks["denoise"] = whole_loop(denoise, graph="loop")

    The block's own parts before the scheduler's step are the network: guiders, ControlNets, whatever they are. The
    pipeline's scheduler says solver, grid and noise, as it would in the loop that this replaces; but the state stays in
    float32 between the steps, whatever the network's dtype. What the network is given lies in buffers, so that a second
    call with inputs of the same shapes makes no sampler and no graph again.

    Args:
        block: a loop of diffusers, as StableDiffusionXLDenoiseStep or FluxDenoiseStep; it is left as it is.
        execution: fields of Execution: graph, network, backend. A graph of the "loop" holds each step as it is, also
            guidance that begins or ends at a step, which one of a "step" cannot; without CUDA there is none.

    Raises:
        ValueError: a block that does more after the network than step the scheduler, as inpainting does.
    """
    *_, last = block.sub_blocks.values()
    more = sorted({str(part.name) for part in last.inputs} - STEPPING)
    if more or len(block.sub_blocks) < 2:
        raise ValueError(
            f"{type(block).__name__}: its last part, {type(last).__name__}, does more than step the scheduler (it "
            f"reads {', '.join(more) or 'all'}), which this loop would leave out; use the block as it is"
        )
    if execution.get("graph") in ("step", "auto"):
        raise ValueError(f"graph = {execution['graph']!r}: a guider counts steps, so that a graph holds the whole loop")
    kind = type(block)
    whole = copy.copy(block)
    whole.__class__ = type(kind.__name__, (_WholeLoop, kind), {"execution": {"graph": "off", **execution}})
    return whole


class _WholeLoop:
    """A loop block whose first step is the whole run, and whose others are nothing."""

    execution: dict[str, Any]
    sub_blocks: Any
    _sampler: Sampler | None = None
    _of: Any = None
    _held: tuple[list[Any], Any] = ([], None)
    _state: Any
    _calls = 0

    def loop_step(self, components: Any, block_state: Any, i: int, t: Any, **rest: Any) -> tuple[Any, Any]:
        """Do all steps at the first one; return components and state."""
        if i:
            return components, block_state
        scheduler, x = components.scheduler, block_state.latents
        if not isinstance(scheduler, Steps):
            raise ValueError(
                f"the pipeline's scheduler is a {type(scheduler).__name__}; give it one of fastscore: "
                "pipe.update_components(scheduler=fastscore.Scheduler.from_config(pipe.scheduler.config))"
            )
        begin = scheduler.index_for_timestep(t) if scheduler.begin_index is None else scheduler.begin_index
        of = components, scheduler.solver, scheduler.rest(begin), tuple(x.shape), x.dtype, x.device
        given = {k: v for k, v in block_state.as_dict().items() if k not in STEPPING}
        if not self._hold(block_state, given) or self._of != of:
            self._sampler, self._of = self._made(components, scheduler, begin, x), of
        assert self._sampler is not None
        self._calls = 0
        seeds, ids = scheduler.noise(getattr(block_state, "generator", None), len(x))
        out = self._sampler.run(ids, seeds, init=x.to(self._sampler.execution.dtype))
        vars(block_state).update(given)  # the buffers stay ours
        block_state.latents = out.to(x.dtype)
        return components, block_state

    def _hold(self, block_state: Any, given: dict[str, Any]) -> bool:
        """Move what the network is given into the buffers of the last call; return whether it all fits there."""
        leaves, tree = tree_flatten(given)
        self._state, (held, shape) = block_state, self._held
        fits = tree == shape and all(map(_alike, leaves, held))
        held = held if fits else [v.clone() if isinstance(v, Tensor) else v for v in leaves]
        for buffer, value in zip(held, leaves, strict=True):
            if isinstance(buffer, Tensor):
                buffer.copy_(value)
        self._held = held, tree
        vars(block_state).update(tree_unflatten(held, tree))
        return fits

    def _made(self, components: Any, scheduler: Steps, begin: int, x: Tensor) -> Sampler:
        *parts, _ = self.sub_blocks.values()
        grid, calls = scheduler.rest(begin), len(scheduler.timesteps) - begin

        def network(u: Tensor, c_noise: Tensor, cond: None) -> Tensor:
            state, k = self._state, self._calls % calls
            self._calls += 1
            state.latents = u
            for part in parts:
                part(components, state, i=k, t=state.timesteps[k])
            return state.noise_pred

        named = {spec.name for part in parts for spec in part.expected_components}
        modules = [m for name in sorted(named) if isinstance(m := getattr(components, name, None), nn.Module)]
        model = ScoreModel(
            network, tuple(x.shape[1:]), scheduler.schedule, scheduler.parametrization, modules=tuple(modules)
        )
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        fields = {"batch": len(x), "dtype": dtype, "device": x.device, **self.execution}
        return Sampler(model, solver=scheduler.solver, grid=grid, guide=scheduler.guide, start="state", **fields)


def _alike(value: Any, held: Any) -> bool:
    """Return whether a value of a second call goes where that of the first one lies."""
    if isinstance(value, Tensor) and isinstance(held, Tensor):
        return (value.shape, value.dtype, value.device) == (held.shape, held.dtype, held.device)
    plain = bool | int | float | str | None
    return value is held or (type(value) is type(held) and isinstance(value, plain) and value == held)
