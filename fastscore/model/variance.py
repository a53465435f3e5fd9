"""Networks that predict a variance beside their mean, as improved DDPM and guided diffusion do."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from fastscore.model.condition_shapes import Condition


class FirstHalf(nn.Module):
    """A network with 2 C output channels as one with C: F is the first half, the rest is left alone.

        model = ScoreModel(FirstHalf(net), (3, 64, 64), discrete_vp("cosine"))

    The second half v stands for a variance between the posterior's and beta, exp(v ln beta + (1 - v) ln beta~), one an
    element. A solver's noise is one number a row: Ancestral(variance="small" or "large") has the two ends of that
    range, which are the same from some hundred steps on.

    Args:
        net: any network with the call convention of ScoreModel.

    Raises:
        ValueError: when called, unless the output has twice the channels (axis 1) of u.

    Source: Nichol & Dhariwal 2021, section 3.1.
    """

    def __init__(self, net: Callable[[Tensor, Tensor, Condition], Tensor]) -> None:
        super().__init__()
        self.net = net

    def forward(self, u: Tensor, c_noise: Tensor, cond: Condition = None) -> Tensor:
        """Return the first half of the channels, a view."""
        out = self.net(u, c_noise, cond)
        if out.shape != (len(u), 2 * u.shape[1], *u.shape[2:]):
            raise ValueError(
                f"FirstHalf: the network returned {tuple(out.shape)} for an input of {tuple(u.shape)}, not twice its "
                "channels; use the network itself"
            )
        return out[:, : u.shape[1]]
