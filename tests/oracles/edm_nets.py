"""Networks in the preconditionings of EDM (Karras et al. 2022, table 1), with attributes and calls of NVlabs' code."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Precond(nn.Module):
    """D(x, sigma, class_labels=None, force_fp32=False): c_skip x + c_out F(c_in x, c_noise, labels).

    Attributes of NVlabs' modules: img_channels, img_resolution, label_dim, sigma_min, sigma_max, round_sigma.
    """

    kind = "edm"

    def __init__(self, img_resolution: int = 3, img_channels: int = 2, label_dim: int = 0, **extra: Any) -> None:
        super().__init__()
        self.img_resolution, self.img_channels, self.label_dim = img_resolution, img_channels, label_dim
        self.sigma_data = 0.5
        self.model = nn.Module()
        self.model.mix = Conv(img_channels, img_channels, init_weight=np.sqrt(1 / 3))
        self.model.act = nn.SiLU()
        self.model.embed = nn.Linear(max(label_dim, 1), img_channels, bias=False)
        self.sigma_min, self.sigma_max = {"edm": (0.0, float("inf")), "ve": (0.02, 100.0)}.get(self.kind, (0.01, 70.0))
        if self.kind == "iddpm":
            self.register_buffer("u", torch.linspace(8.0, 0.0, 13).square())  # and the last is 0
            self.sigma_min, self.sigma_max = float(self.u[-2]), float(self.u[0])
        self.register_buffer("resample", torch.ones(2), persistent=False)

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None, force_fp32: bool = False) -> Tensor:
        weight = self.model.mix.weight
        x, sigma = x.to(weight), torch.as_tensor(sigma).to(weight).reshape(-1, 1, 1, 1)
        labels = None
        if self.label_dim:
            zeros = torch.zeros(1, self.label_dim).to(weight)
            labels = zeros if class_labels is None else class_labels.to(weight).reshape(-1, self.label_dim)
        skip, out, scale, noise = self.coefficients(sigma)
        h = self.model.mix(scale * x) + 0.1 * noise
        if labels is not None:
            h = h + self.model.embed(labels)[:, :, None, None]
        return skip * x + out * self.model.act(h)

    def coefficients(self, sigma: Tensor) -> tuple[Any, Tensor, Any, Tensor]:
        """Return c_skip, c_out, c_in, c_noise."""
        if self.kind == "ve":
            return 1.0, sigma, 1.0, torch.log(0.5 * sigma)
        if self.kind in ("vp", "iddpm"):
            noise = sigma if self.kind == "vp" else self.round_sigma(sigma, return_index=True).to(sigma)
            return 1.0, -sigma, 1.0 / (sigma**2 + 1.0).sqrt(), noise
        data = self.sigma_data
        length = (sigma**2 + data**2).sqrt()
        return data**2 / length**2, sigma * data / length, 1.0 / length, sigma.log() / 4.0

    def round_sigma(self, sigma: Any, return_index: bool = False) -> Tensor:
        """Return the nearest level of the table, of the network that has one."""
        sigma = torch.as_tensor(sigma)
        if self.kind != "iddpm":
            return sigma
        index = (sigma.reshape(-1, 1) - self.u.to(sigma)).abs().argmin(1)
        return (index if return_index else self.u.to(sigma)[index]).reshape(sigma.shape)


class Conv(nn.Module):
    """A convolution of one pixel, with an argument that is a number of NumPy, as many in NVlabs' networks are."""

    def __init__(self, i: int, o: int, init_weight: float = 1.0) -> None:
        super().__init__()
        rng = np.random.default_rng(3)
        self.weight = nn.Parameter(torch.from_numpy(init_weight * rng.standard_normal((o, i, 1, 1))).float())
        self.bias = nn.Parameter(torch.from_numpy(rng.standard_normal(o)).float())

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight, self.bias)


class VPPrecond(Precond):
    """As VPPrecond."""

    kind = "vp"


class VEPrecond(Precond):
    """As VEPrecond."""

    kind = "ve"


class DDPMPrecond(Precond):
    """As iDDPMPrecond, whose levels are a table."""

    kind = "iddpm"


class Precond2(Precond):
    """As EDM2's Precond, which says nothing of its noise levels."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        del self.sigma_min, self.sigma_max


@contextmanager
def nvlabs_modules() -> Iterator[Any]:
    """Put stand-ins of dnnlib and torch_utils.persistence where pickles look for them; yield the class decorator.

    Objects of a decorated class pickle as NVlabs' do: by a function that would execute ``module_src``.
    """
    names = ("dnnlib", "dnnlib.util", "torch_utils", "torch_utils.persistence")
    modules = {name: ModuleType(name) for name in names}

    def _reconstruct_persistent_obj(meta: dict[str, Any]) -> Any:
        exec(meta["module_src"])  # what loading such a file does
        raise AssertionError("the source in a file was executed")

    easy = type("EasyDict", (dict,), {"__module__": "dnnlib.util"})
    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    modules["torch_utils.persistence"]._reconstruct_persistent_obj = _reconstruct_persistent_obj
    modules["dnnlib.util"].EasyDict = easy

    def persistent(cls: Any) -> Any:
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            cls.__init__(self, *args, **kwargs)
            self._init_args, self._init_kwargs = copy.deepcopy(args), copy.deepcopy(kwargs)

        def __reduce__(self: Any) -> Any:
            state = dict(self.__dict__)
            source = "import pathlib; pathlib.Path('executed').touch()"
            meta = {"type": "class", "version": 6, "module_src": source, "class_name": cls.__name__, "state": state}
            return _reconstruct_persistent_obj, (meta,), None

        return type(cls.__name__, (cls,), {"__init__": __init__, "__reduce__": __reduce__})

    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update(modules)
    try:
        yield persistent
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
