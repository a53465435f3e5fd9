r"""Score models in another orthonormal basis of their channels.

Isotropic noise is isotropic in every orthonormal basis, so with x~ = M x the score of x~ is M times that of x: the
wrapped network turns its input back and its output forth, and schedules, solvers and known data never notice.
Colourisation is inpainting in a basis whose first channel is grey (Song et al. 2021, appendix I.3).

    M = grey_basis()
    known = Known(change_basis(grey.expand(3, -1, -1), M), mask=first_channel)
    x = change_basis(Sampler(in_basis(model, M)).run(ids, known=known), M.T)
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from fastscore.model import ScoreModel


def grey_basis(channels: int = 3) -> Tensor:
    """Return the Helmert matrix, orthonormal [C, C] float64, whose first row is 1 / sqrt(C): sqrt(C) times the mean."""
    M = torch.ones(channels, channels, dtype=torch.float64).tril()
    for k in range(1, channels):
        M[k, k] = -k
        M[k, k + 1 :] = 0.0
    M[0] = 1.0
    return M / M.norm(dim=1, keepdim=True)


def change_basis(x: Tensor, M: Tensor) -> Tensor:
    """Return M x: the channels of images [C, H, W] or [N, C, H, W] mixed by M [C, C]."""
    return torch.einsum("kc,...chw->...khw", M.to(x), x)


class _Turned(nn.Module):
    def __init__(self, net: nn.Module, M: Tensor) -> None:
        super().__init__()
        self.net = net
        self.M: Tensor
        self.register_buffer("M", M)

    def forward(self, u: Tensor, c_noise: Tensor, cond: Tensor | None) -> Tensor:
        return change_basis(self.net(change_basis(u, self.M.T), c_noise, cond), self.M)


def in_basis(model: ScoreModel, M: Tensor) -> ScoreModel:
    """Return the model of x~ = M x; a ``clip`` of its sampler bounds x~ and not x.

    Raises:
        ValueError: the samples are no images, or M is not orthonormal [C, C].
    """
    c = model.shape[0]
    if len(model.shape) != 3 or M.shape != (c, c):
        raise ValueError(f"in_basis: M has shape {tuple(M.shape)}, samples {model.shape}; expected [C, C] and images")
    if not torch.allclose(M.double() @ M.double().T, torch.eye(c, dtype=torch.float64, device=M.device), atol=1e-6):
        raise ValueError("in_basis: M must be orthonormal")
    net = model.net if isinstance(model.net, nn.Module) else _Function(model.net)
    return replace(model, net=_Turned(net, M))


class _Function(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor | None) -> Tensor:
        return self.function(*args)  # pyright: ignore[reportCallIssue]
