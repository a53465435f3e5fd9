"""What needs no diffusers: how networks are called, which labels they get, and what is said where it is missing."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pytest
import torch
from torch import nn

import fastscore as fs
from fastscore.adapters import from_diffusers
from fastscore.adapters.diffusers.models import Labels, Network, call_of, packed, places, unpacked
from fastscore.adapters.diffusers.solvers import Quantile


class Plain(nn.Module):
    """A network of one's own, with a learned variance and a tensor beside."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(1))

    def forward(self, sample, timestep, caption=None, return_dict=True):
        mean = (
            sample * self.w
            + timestep[:, None, None, None]
            + (0.0 if caption is None else caption.sum(1)[:, None, None, None])
        )
        out = torch.cat([mean, 0 * mean], 1)
        return {"sample": out} if return_dict else (out,)


class Conditioned(Plain):
    """The same, which cannot do without."""

    def forward(self, sample, timestep, caption):
        return super().forward(sample, timestep, caption, return_dict=False)[0][:, : sample.shape[1]]


def test_forward_is_called_by_its_signature():
    net = Network(Plain(), call_of(Plain()), Labels(2.0), sign=-1.0)
    u, t = torch.ones(2, 3, 2, 2), torch.tensor([1.0, 5.0])
    assert net(u, t)[:, 0, 0, 0].tolist() == [-3.0, -11.0]
    with pytest.raises(ValueError, match="needs caption"):
        call_of(Conditioned())
    call = call_of(Conditioned(), {"caption": (4,)})
    out = Network(Conditioned(), call, Labels())(u, t, {"caption": torch.ones(2, 4, dtype=torch.float64)})
    assert out.dtype == torch.float32 and out[:, 0, 0, 0].tolist() == [6.0, 10.0]
    with pytest.raises(ValueError, match="takes no colour"):
        call_of(Plain(), {"colour": (4,)})
    unknown = type("OtherTransformer2DModel", (Plain,), {"__module__": "diffusers.models.other"})
    with pytest.raises(ValueError, match="what its pipeline makes of labels is not known"):
        call_of(unknown())
    with pytest.raises(ValueError, match="takes no state and timestep"):
        call_of(nn.Linear(2, 2))


def test_labels_are_the_scheduler_s_at_its_times():
    labels = Labels(1000.0, [999.0, 500.5, 20.25], [998.0, 500.0, 20.0])
    asked = torch.tensor([0.999, 0.5005, 0.02025, 0.3])
    assert labels(asked).tolist() == pytest.approx([998.0, 500.0, 20.0, 300.0])
    assert pickle.loads(pickle.dumps(labels))(asked).equal(labels(asked))
    assert not labels.state_dict()
    assert Labels()(asked).equal(asked)


def test_tokens_are_packed_and_unpacked():
    x = torch.arange(2 * 4 * 6 * 8.0).view(2, 4, 6, 8)
    assert packed(x).shape == (2, 12, 16)
    assert unpacked(packed(x), (6, 8)).equal(x)
    assert packed(x)[0, 5].tolist() == x[0, :, 2:4, 2:4].flatten().tolist()  # row 1, column 1
    assert places(x)[5].tolist() == [0.0, 1.0, 1.0]


def test_quantile_is_between_ranks():
    D = torch.tensor(np.linspace(-3.0, 3.0, 8), dtype=torch.float32).view(1, 1, 2, 4)
    s = float(torch.quantile(D.abs().flatten(), 0.9))
    bounded = Quantile(0.9, 10.0)(lambda x: x, D, D, D, None)
    assert bounded.max() == pytest.approx(1.0) and bounded.equal(D.clamp(-s, s) / s)
    assert Quantile(0.9, 1.5)(lambda x: x, D, D, D, None).equal(D.clamp(-1.5, 1.5) / 1.5)
    with pytest.raises(ValueError, match=r"top = 0\.5"):
        Quantile(0.9, 0.5)


def test_missing_library_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(ImportError, match="pip install diffusers") as missing:
        from_diffusers(tmp_path)
    assert missing.value.name == "diffusers"
    with pytest.raises(ValueError, match="scheduler is missing"):
        from_diffusers(Plain(), shape=(3, 4, 4))
    with pytest.raises(ValueError, match="must be a folder, a pipeline"):
        from_diffusers(3)


def test_network_and_what_says_a_config():
    class Scheduler:
        config = {"prediction_type": "v_prediction"}

    model, settings = from_diffusers(Plain(), Scheduler(), solver="heun", steps=3, shape=(3, 4, 4))
    assert model.parametrization == fs.Parametrization("v", "t") and settings == {"solver": "heun", "steps": 3}
    assert fs.Sampler(model, batch=2, **settings).run(range(2)).shape == (2, 3, 4, 4)
    flow = {"num_train_timesteps": 500, "prediction_type": "flow_prediction", "flow_shift": 2.0}
    model, settings = from_diffusers(Plain(), flow, solver="heun", shape=(3, 4, 4))
    assert model.schedule == fs.Flow() and settings["schedule"] == fs.Flow(shift=2.0)
    assert model.net.labels(torch.tensor([0.5])).tolist() == [250.0]
    with pytest.raises(ValueError, match="no _class_name"):
        from_diffusers(Plain(), flow, shape=(3, 4, 4))
    with pytest.raises(ValueError, match="leave solver out"):
        from_diffusers(Plain(), Scheduler(), solver="heun", shape=(3, 4, 4), mu=0.5)
    with pytest.raises(ValueError, match=r"give shape=\(channels"):
        from_diffusers(Plain(), Scheduler(), solver="heun")
