"""Settings of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fastscore.errors import typed, unknown
from fastscore.training import losses


@dataclass(frozen=True)
@typed
class TrainConfig:
    """Settings of a training run, saved beside its checkpoint.

    The plain recipe of tutorials is ``TrainConfig(optimizer="adam", ema=None, warmup=0, cooldown=0, clip=0,
    dtype="fp32")``: Adam at one rate, the last weights.

    Attributes:
        images: training images (or points) to see in total.
        batch: per step.
        lr: peak learning rate; warm-up over ``warmup`` images (the smaller of 50,000 and a tenth of all if left
            out), linear decay to zero over the last ``cooldown`` fraction.
        optimizer: "adamw" with betas (0.9, 0.99), or "adam" with PyTorch's (0.9, 0.999); weight_decay: of it.
        ema: exponent gamma of the power-function average, beta = (1 - 1/step)^(gamma + 1);
            16.97 averages over about the last 5 % (Karras et al. 2024, eq. 2 and 3). None keeps the last weights.
        loss: "dsm" (denoising score matching), or for small networks "implicit" or "sliced" score
            matching of the noised data, weighted by sigma^2.
        weighting: of the loss over time: one of losses.WEIGHTINGS, or lambda(t), a function of an array of times;
            losses.default_weighting if left out.
        times: their distribution, see losses.sample_times; losses.default_times if left out. mean, std: of ln sigma
            for lognormal times. Both left out: recipe.noise_levels, EDM's (-1.2, 1.2 at its sigma_data of 0.5) unless
            the data's largest principal component is far above sigma_data; one left out: EDM's.
        t_end: least noisy time that is trained; the schedule's own if left out.
        label_dropout: share of labels replaced by the null class.
        clip: gradient norm bound; 0 is none.
        dtype: "bf16" (autocast) or "fp32".
        compile: run the network through torch.compile.
        seed: of everything random.
        checkpoint_every: images between checkpoints.

    Raises:
        ValueError: a value out of range, by name.
    """

    images: int = 1_000_000
    batch: int = 128
    lr: float = 1e-3
    warmup: int | None = None
    cooldown: float = 0.25
    optimizer: str = "adamw"
    weight_decay: float = 1e-4
    ema: float | None = 16.97
    loss: str = "dsm"
    weighting: losses.Weighting | None = None
    times: str | None = None
    mean: float | None = None
    std: float | None = None
    t_end: float | None = None
    label_dropout: float = 0.1
    clip: float = 1.0
    dtype: str = "bf16"
    compile: bool = True
    seed: int = 0
    checkpoint_every: int = 100_000

    def __post_init__(self) -> None:
        for name, low, high in (
            ("images", 1, None), ("batch", 1, None), ("lr", 0, None), ("warmup", 0, None), ("cooldown", 0, 1),
            ("weight_decay", 0, None), ("ema", 0, None), ("mean", -math.inf, None), ("std", 0, None),
            ("t_end", -math.inf, None), ("label_dropout", 0, 1), ("clip", 0, None), ("seed", 0, 2**64 - 1),
            ("checkpoint_every", 1, None),
        ):  # fmt: skip
            value: Any = getattr(self, name)
            if value is None and name in ("warmup", "ema", "mean", "std", "t_end"):
                continue
            if value is None or not -math.inf < value < math.inf or value < low or (high is not None and value > high):
                bound = f"at least {low}" if high is None else f"in {low} .. {high}"
                raise ValueError(f"{name} = {value} must be {'finite' if low == -math.inf else bound}")
        for name, choices in (
            ("loss", losses.LOSSES),
            ("weighting", losses.WEIGHTINGS),
            ("times", losses.TIMES),
            ("optimizer", ("adamw", "adam")),
            ("dtype", ("bf16", "fp32")),
        ):
            value = getattr(self, name)
            if not (isinstance(value, str) and value in choices) and not (
                (name in ("weighting", "times") and value is None) or (name == "weighting" and callable(value))
            ):
                raise unknown(f"{name}", value, choices)

    def lr_at(self, seen: int) -> float:
        """Return the learning rate after ``seen`` images."""
        warmup = min(50_000, self.images // 10) if self.warmup is None else self.warmup
        rise = min(1.0, (seen + self.batch) / max(warmup, 1))
        fall = min(1.0, (self.images - seen) / max(self.cooldown * self.images, 1.0))
        return self.lr * rise * max(fall, 0.0)
