"""Networks of diffusers as networks here: modules called as ``net(u, c_noise, cond)``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

NEAR = 1e-3  # of a time that is found again, in units of labels
# Classes of diffusers that get the scheduler's label as it is and no more than conditions= declares; of others only
# their pipelines know whether it is divided, or counts from the data.
PLAIN = ("UNet1DModel", "UNet3DConditionModel", "WanTransformer3DModel")
TEXT = "encoder_hidden_states"
Shapes = Mapping[str, "tuple[int | None, ...]"]


class Labels(nn.Module):
    """The labels that a network of diffusers gets: scale c_noise, but where its scheduler has others for its levels.

    A scheduler that asks between the levels of its table rounds the label, cuts it off or has it from an interpolation
    of its own. At those times the label is the scheduler's; at all others it follows from the level.

    Args:
        scale: 1 of a table, whose c_noise is the index; num_train_timesteps of a flow.
        times, labels: pairs of scale c_noise and the scheduler's label.
    """

    times: Tensor
    labels: Tensor

    def __init__(self, scale: float = 1.0, times: Sequence[float] = (), labels: Sequence[float] = ()) -> None:
        super().__init__()
        self.scale = scale
        # No weights: they are made of the settings, and are not saved. float32, as labels are there.
        self.register_buffer("times", torch.tensor(times, dtype=torch.float32), persistent=False)
        self.register_buffer("labels", torch.tensor(labels, dtype=torch.float32), persistent=False)

    def forward(self, c_noise: Tensor) -> Tensor:
        label = self.scale * c_noise
        if self.times.numel() == 0:
            return label
        gap, nearest = (label[:, None] - self.times).abs().min(1)
        return torch.where(gap < NEAR, self.labels[nearest].to(label.dtype), label)


@dataclass(frozen=True)
class Call:
    """How a network's forward is called.

    Attributes:
        sample, time: its arguments for the state and the label.
        conditions: shapes of its conditioning tensors, by argument; None for a length that each request chooses.
        added: those of them that go into the dict ``added_cond_kwargs``.
        classes: of ``class_labels``; ``null`` is the one that stands for none, if it is known.
        per: what divides the label before the call.
        packs: whether the state is tokens of 2 x 2 pixels, with their places beside.
        guidance: whether it takes the guidance scale as a number; it then has no second evaluation.
        options: further arguments, the same in each call.
    """

    sample: str
    time: str
    conditions: Shapes = field(default_factory=dict)
    added: tuple[str, ...] = ()
    classes: int = 0
    null: int | None = None
    per: float = 1.0
    packs: bool = False
    guidance: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


def call_of(net: nn.Module, conditions: Shapes | None = None) -> Call:
    """Return how a network of diffusers is called: by its class and config, or else by its signature.

    Args:
        conditions: further arguments of its forward that are tensors of each sample, with their shapes.

    Raises:
        ValueError: a class of diffusers whose pipeline does with labels what is not known here; a forward that takes
            no state and time, or another argument that it needs and nothing names.
    """
    kind, parameters = type(net).__name__, inspect.signature(net.forward).parameters
    names = list(parameters)
    time = next((name for name in ("timestep", "timesteps", "t") if name in names), None)
    if time is None or names[0] == time:
        raise ValueError(f"{kind}.forward({', '.join(names)}) takes no state and timestep; wrap it with adapters.wrap")
    options = {"return_dict": False} if "return_dict" in names else {}
    call = _known(net, Call(names[0], time, options=options))
    call = replace(call, conditions={**call.conditions, **(conditions or {})})
    given = {call.sample, call.time, *call.conditions, "img_ids", "txt_ids", "guidance"}
    needs = [p.name for p in parameters.values() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if missing := [name for name in needs if name not in given]:
        raise ValueError(
            f"{kind}.forward needs {', '.join(missing)}: say the shape of each in conditions=, as in "
            f"conditions={{{missing[0]!r}: (None, 768)}}"
        )
    if unknown := [name for name in call.conditions if name not in (*names, *call.added)]:
        raise ValueError(f"conditions: {kind}.forward takes no {', '.join(unknown)}; it takes {', '.join(names)}")
    return call


def _known(net: nn.Module, call: Call) -> Call:
    kind, config = type(net).__name__, dict(getattr(net, "config", None) or {})
    if kind in ("UNet2DModel", "UNet2DConditionModel"):
        return _unet(kind, config, call)
    if kind == "DiTTransformer2DModel":
        return replace(call, classes=config["num_embeds_ada_norm"], null=config["num_embeds_ada_norm"])
    if kind in ("SD3Transformer2DModel", "FluxTransformer2DModel"):
        text = {TEXT: (None, config["joint_attention_dim"]), "pooled_projections": (config["pooled_projection_dim"],)}
        call = replace(call, conditions=text)
        flux = kind.startswith("Flux")  # whose labels are in 0 .. 1
        return replace(call, per=1000.0, packs=True, guidance=bool(config["guidance_embeds"])) if flux else call
    if type(net).__module__.startswith("diffusers.") and kind not in PLAIN:
        raise ValueError(
            f"{kind}: what its pipeline makes of labels is not known here; put it into a module of your own with "
            f"forward(sample, timestep, ..), which calls it as its pipeline does"
        )
    return call


def _unet(kind: str, config: Mapping[str, Any], call: Call) -> Call:
    call = replace(call, classes=config.get("num_class_embeds") or 0)
    if kind == "UNet2DModel":
        others = {"class_embed_type": None if call.classes else config.get("class_embed_type")}
    else:
        width, added = config.get("cross_attention_dim"), config.get("addition_embed_type")
        shapes = {TEXT: (None, width if isinstance(width, int) else None)}
        if added == "text_time":
            pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
            shapes |= {"text_embeds": (pooled,), "time_ids": (6,)}
            call = replace(call, added=("text_embeds", "time_ids"))
        call = replace(call, conditions=shapes)
        others = {k: config.get(k) for k in ("class_embed_type", "encoder_hid_dim_type", "addition_embed_type")}
        others["addition_embed_type"] = None if call.added else added
    if named := [f"{k} = {v!r}" for k, v in others.items() if v is not None]:
        raise ValueError(f"{kind}: {', '.join(named)} is not known here; put it into a module of your own")
    return call


class Network(nn.Module):
    """A network of diffusers called as ``net(u, c_noise, cond)``.

    Of an output with twice the channels of the state the first half is taken: the other is a learned variance.

    Args:
        net: the network; ``call`` says how it is called.
        labels: of c_noise.
        sign: on the output.
        guidance: the number that a network with embedded guidance gets.
    """

    def __init__(self, net: nn.Module, call: Call, labels: Labels, sign: float = 1.0, guidance: float = 0.0) -> None:
        super().__init__()
        self.net, self.call, self.labels, self.sign, self.guidance = net, call, labels, sign, guidance

    def forward(self, u: Tensor, c_noise: Tensor, cond: Tensor | Mapping[str, Tensor] | None = None) -> Tensor:
        call = self.call
        given = dict(call.options)
        if isinstance(cond, Mapping):
            given |= {k: v.to(u.dtype) if v.is_floating_point() else v for k, v in cond.items()}
        elif cond is not None:
            given["labels"] = cond
        if "labels" in given:
            given["class_labels"] = given.pop("labels")
        if call.added:
            given["added_cond_kwargs"] = {name: given.pop(name) for name in call.added}
        given[call.time] = self.labels(c_noise) / call.per
        if not call.packs:
            return self._first(self.net(**{call.sample: u}, **given), u)
        given |= {"img_ids": places(u), "txt_ids": u.new_zeros(given["encoder_hidden_states"].shape[1], 3)}
        if call.guidance:
            given["guidance"] = u.new_full((len(u),), self.guidance)
        (tokens,) = self.net(**{call.sample: packed(u)}, **given)
        return self._first(unpacked(tokens, u.shape[-2:]), u)

    def _first(self, output: Any, u: Tensor) -> Tensor:
        output = output[0] if isinstance(output, tuple) else output
        output = output[:, : u.shape[1]] if output.shape[1] == 2 * u.shape[1] else output
        return output if self.sign == 1.0 else self.sign * output


def packed(x: Tensor) -> Tensor:
    """Return [N, C, H, W] as tokens of 2 x 2 pixels, [N, H/2 W/2, 4 C]."""
    n, channels, height, width = x.shape
    x = x.view(n, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(n, height // 2 * (width // 2), 4 * channels)


def unpacked(tokens: Tensor, size: Sequence[int]) -> Tensor:
    """Return tokens as [N, C, H, W], the inverse of ``packed``."""
    height, width = size
    x = tokens.view(len(tokens), height // 2, width // 2, -1, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(len(tokens), -1, height, width)


def places(x: Tensor) -> Tensor:
    """Return the ids of the tokens of [N, C, H, W], [H/2 W/2, 3]: 0, row and column."""
    rows, columns = (torch.arange(k // 2, device=x.device, dtype=x.dtype) for k in x.shape[-2:])
    grid = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([torch.zeros_like(grid[0]), *grid], -1).flatten(0, 1)
