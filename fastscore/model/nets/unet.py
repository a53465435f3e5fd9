"""A compact U-Net in the manner of DDPM++: residual blocks, attention at low resolution.

No data-dependent control flow and one dtype inside, so that it compiles to one graph; the time
embedding stays in float32, which is where bfloat16 would hurt (a percent of error otherwise).
Source: Song et al. 2021, appendix H (DDPM++); scale-shift conditioning: Dhariwal & Nichol 2021.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastscore.model.nets.embedding import time_features, zero_


class ResBlock(nn.Module):
    """GroupNorm, SiLU, 3x3 convolution, twice; the embedding scales and shifts the second norm."""

    def __init__(self, cin: int, cout: int, emb: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(_groups(cin), cin), nn.Conv2d(cin, cout, 3, padding=1)
        self.affine = nn.Linear(emb, 2 * cout)
        self.norm2, self.conv2 = nn.GroupNorm(_groups(cout), cout), zero_(nn.Conv2d(cout, cout, 3, padding=1))
        self.skip = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.affine(emb).to(x.dtype)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.norm2(h) * (1 + scale) + shift
        return self.skip(x) + self.conv2(self.dropout(F.silu(h)))


class Attention(nn.Module):
    """Self-attention over all pixels, with heads of 64 channels at most."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(1, channels // 64)
        self.norm = nn.GroupNorm(_groups(channels), channels)
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), zero_(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        qkv = self.qkv(self.norm(x))
        if qkv.is_cuda:  # fused attention takes channels that lie together, and refuses others without a word
            qkv = qkv.contiguous(memory_format=torch.channels_last)
        q, k, v = qkv.reshape(n, 3, self.heads, c // self.heads, h * w).transpose(-1, -2).unbind(1)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(-1, -2).reshape(n, c, h, w))


class Upsample(nn.Module):
    """Nearest neighbour, then a 3x3 convolution."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Down(nn.Module):
    """One resolution on the way down; every block's output is kept for the way up."""

    def __init__(self, resample: nn.Module, blocks: list[ResBlock], attention: nn.Module) -> None:
        super().__init__()
        self.resample, self.blocks, self.attention = resample, nn.ModuleList(blocks), attention

    def forward(self, x: Tensor, emb: Tensor, skips: list[Tensor]) -> Tensor:
        x = self.resample(x)
        for block in self.blocks:
            x = block(x, emb)
            skips.append(x)
        return self.attention(x)


class Up(nn.Module):
    """One resolution on the way up; every block also reads what the way down kept."""

    def __init__(self, blocks: list[ResBlock], attention: nn.Module, resample: nn.Module) -> None:
        super().__init__()
        self.blocks, self.attention, self.resample = nn.ModuleList(blocks), attention, resample

    def forward(self, x: Tensor, emb: Tensor, skips: list[Tensor]) -> Tensor:
        for block in self.blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), emb)
        return self.resample(self.attention(x))


class UNet(nn.Module):
    """Score network on images.

    Args:
        channels: of the image.
        size: of the image in pixels: one number, or height and width. Any will do: what is no multiple of ``patch``
            times a power of two for each level after the first is padded with zeros below and at the right, as every
            convolution pads, and cut off again.
        width: channels of the first level.
        mult: factor on ``width`` of each level; each level after the first halves the resolution.
        blocks: residual blocks of each level, on the way down and again on the way up.
        attention: levels with self-attention after their last block (the middle always has it).
        patch: space-to-depth factor at input and output; 2 makes the net about 3 times cheaper.
        classes: class labels 0 .. classes-1, plus the null class ``classes`` for guidance; 0 is
            unconditional.
        embedding: "fourier" (random, fixed), "sinusoidal" or "learned" time features.
        scale: of the label's frequencies: the standard deviation of Fourier's.

    ``forward(u, c_noise, cond)``: u [N, C, H, W], c_noise [N] float32, cond [N] int64 labels or None
    (the null class). Returns F [N, C, H, W] in the dtype of u.
    """

    def __init__(
        self,
        channels: int,
        size: int | tuple[int, int],
        width: int = 64,
        mult: tuple[int, ...] = (1, 2),
        blocks: tuple[int, ...] = (2, 1),
        attention: tuple[int, ...] = (),
        patch: int = 1,
        classes: int = 0,
        dropout: float = 0.0,
        embedding: str = "fourier",
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        if len(mult) != len(blocks):
            raise ValueError(f"UNet: mult = {mult} and blocks = {blocks} must have one entry a level each")
        if not all(isinstance(k, int) and k > 0 for k in (size if isinstance(size, tuple) else (size,))):
            raise ValueError(f"UNet: size = {size} must be a number of pixels, or height and width")
        emb = 4 * width
        self.patch, self.classes, self.step = patch, classes, patch * 2 ** (len(mult) - 1)
        self.features = time_features(embedding, emb // 2, scale)
        self.embed = nn.Sequential(nn.Linear(emb // 2, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.label = nn.Embedding(classes + 1, emb) if classes else None
        self.stem = nn.Conv2d(channels * patch * patch, width, 3, padding=1)

        def attend(level: int, c: int) -> nn.Module:
            return Attention(c) if level in attention else nn.Identity()

        down, up, skips, c = [], [], [], width
        for level, (m, depth) in enumerate(zip(mult, blocks, strict=True)):
            resample = nn.Conv2d(c, m * width, 3, stride=2, padding=1) if level else nn.Identity()
            stack = [ResBlock(c if k == 0 and not level else m * width, m * width, emb, dropout) for k in range(depth)]
            c = m * width
            skips += [c] * depth
            down.append(Down(resample, stack, attend(level, c)))
        self.down = nn.ModuleList(down)
        self.mid1, self.mid_attention = ResBlock(c, c, emb, dropout), Attention(c)
        self.mid2 = ResBlock(c, c, emb, dropout)
        for level, (m, depth) in reversed(list(enumerate(zip(mult, blocks, strict=True)))):
            stack = []
            for _ in range(depth):
                stack.append(ResBlock(c + skips.pop(), c := m * width, emb, dropout))
            resample = Upsample(c, mult[level - 1] * width) if level else nn.Identity()
            up.append(Up(stack, attend(level, c), resample))
            c = mult[level - 1] * width if level else c
        self.up = nn.ModuleList(up)
        self.norm = nn.GroupNorm(_groups(c), c)
        self.head = zero_(nn.Conv2d(c, channels * patch * patch, 3, padding=1))

    def forward(self, u: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        emb = self.embed(self.features(c_noise).to(u.dtype))
        if self.label is not None:
            label = torch.full_like(c_noise, self.classes, dtype=torch.int64) if cond is None else cond
            emb = emb + self.label(label)
        emb = F.silu(emb)
        h, w = u.shape[2:]
        right, below = -w % self.step, -h % self.step
        if right or below:
            u = F.pad(u, (0, right, 0, below))
        x = self.stem(F.pixel_unshuffle(u, self.patch) if self.patch > 1 else u)
        skips: list[Tensor] = []
        for down in self.down:
            x = down(x, emb, skips)
        x = self.mid2(self.mid_attention(self.mid1(x, emb)), emb)
        for up in self.up:
            x = up(x, emb, skips)
        x = self.head(F.silu(self.norm(x)))
        x = (F.pixel_shuffle(x, self.patch) if self.patch > 1 else x).to(u.dtype)
        return x[:, :, :h, :w] if right or below else x


def _groups(channels: int) -> int:
    return min(32, channels // 4)
