from __future__ import annotations

import importlib
import warnings
from types import SimpleNamespace

import pytest
import torch

from fastscore.kernels.cpu import library
from fastscore.model.nets import build
from fastscore.model.score import ScoreModel
from fastscore.network.jit import compiled, has_compiler
from fastscore.ops.backend import REFERENCE, resolve, triton_lack
from fastscore.process.continuous import EDM
from fastscore.process.grid import karras
from fastscore.process.parametrization import Parametrization
from fastscore.sampler import Sampler

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def model() -> ScoreModel:
    torch.manual_seed(0)
    net = build({"name": "UNet", "channels": 1, "size": 8, "width": 8, "mult": [1, 2], "blocks": [1, 1], "classes": 3})
    for p in net.parameters():
        p.data.normal_(std=0.1)
    return ScoreModel(net, (1, 8, 8), EDM(), Parametrization("edm", "log_sigma/4"), classes=3, null=3)


def compiles_or_skips() -> None:
    if not has_compiler():
        pytest.skip("torch.compile needs g++ or clang++ on the CPU, and there is none")


@pytest.mark.slow
@pytest.mark.nightly  # the gate compiles a package, see test_prepare.py, and traces every network below
@pytest.mark.parametrize("how", ["compile", "regional"])
def test_a_compiled_network_draws_the_same_samples(how):
    compiles_or_skips()
    m = model()
    plain = Sampler(m, grid=karras(4), batch=4).run(range(6), labels="random")
    fast = Sampler(m, grid=karras(4), batch=4, network=how)
    times = fast.warm_up()
    assert times["graph"] == "off"
    assert times["first_s"] > 0
    assert torch.allclose(fast.run(range(6), labels="random"), plain, rtol=1e-4, atol=1e-4)
    assert not any(hasattr(b, "_compiled_call_impl") and b._compiled_call_impl for b in m.net.modules())


@pytest.mark.slow
def test_every_network_compiles_to_one_graph():
    compiles_or_skips()
    for spec, shape in (
        ({"name": "UNet", "channels": 1, "size": 8, "width": 8, "mult": [1, 2], "blocks": [1, 1]}, (1, 8, 8)),
        ({"name": "ScoreNet"}, (1, 28, 28)),
        ({"name": "MLP", "dim": 2, "width": 16}, (2,)),
    ):
        explained = torch._dynamo.explain(build(spec))(torch.zeros(2, *shape), torch.full((2,), 0.5), None)
        assert (explained.graph_count, explained.graph_break_count) == (1, 0), spec["name"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compiled(lambda u, t, c: u, "regional"), "needs an nn.Module"),
        (lambda: compiled(torch.nn.Linear(2, 2), "regional"), "repeats no block"),
        (lambda: Sampler(model(), graph="whole"), "graph = 'whole'"),
        (lambda: Sampler(model(), graph="loop"), "needs a CUDA device"),
        (lambda: Sampler(model(), backend="cuda"), "backend = 'cuda'"),
        (lambda: Sampler(model(), backend="triton"), "cannot run on cpu"),
    ],
)
def test_bad_choices_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_backend_is_resolved_by_device_and_environment(monkeypatch):
    resolve.cache_clear()
    assert resolve("auto", CPU).name == ("cpp" if library.library_file() else "reference")
    assert resolve("auto", CUDA).name == "triton"
    monkeypatch.setenv("FASTSCORE_BACKEND", "reference")
    resolve.cache_clear()
    assert resolve("auto", CUDA) is REFERENCE
    assert resolve("auto", CPU) is REFERENCE
    monkeypatch.setenv("FASTSCORE_BACKEND", "numpy")
    resolve.cache_clear()
    with pytest.raises(ValueError, match="backend = 'numpy'"):
        resolve("auto", CPU)
    monkeypatch.delenv("FASTSCORE_BACKEND")
    resolve.cache_clear()


def test_a_missing_triton_is_said_once(monkeypatch):
    resolve.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.warns(UserWarning, match=r"triton is not installed \(pip install triton\): using the reference"):
        assert resolve("auto", CUDA) is REFERENCE
    with pytest.raises(ValueError, match="pip install triton"):
        resolve("triton", CUDA)
    resolve.cache_clear()


def broken() -> object:
    raise OSError("undefined symbol")


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (lambda: SimpleNamespace(__version__="3.2.0"), r"triton 3\.2\.0 cannot compile .* need 3\.6 \(torch 2\.10\)"),
        (lambda: SimpleNamespace(__version__="3.5.1+git1"), r"triton 3\.5\.1\+git1 cannot compile"),
        (broken, r"installed but cannot be imported \(OSError\)"),
    ],
)
def test_a_triton_that_is_old_or_broken_is_said_and_not_used(monkeypatch, module, said):
    resolve.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(importlib, "import_module", lambda name: module())
    with pytest.warns(UserWarning, match=said + ".*: using the reference"):
        assert resolve("auto", CUDA) is REFERENCE
    with pytest.raises(ValueError, match=said + ".*; use backend='auto'"):
        resolve("triton", CUDA)
    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace(__version__="3.10.0"))
    assert triton_lack() == ""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (10, 0))
    assert triton_lack(CUDA) == ""
    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace(__version__="3.6.0"))
    assert triton_lack() == ""
    resolve.cache_clear()
    with pytest.warns(
        UserWarning, match=r"3\.6\.0 fuses .* on Blackwell GPUs, .*; 3\.7 \(torch 2\.12\) does not: using"
    ):
        assert resolve("auto", CUDA) is REFERENCE
    with pytest.raises(ValueError, match="on Blackwell GPUs"):
        resolve("triton", CUDA)
    monkeypatch.setattr(torch.version, "hip", "7.0")  # whose RDNA 4 is a 12.0
    assert triton_lack(CUDA) == ""
    resolve.cache_clear()


def test_an_install_without_a_compiler_is_one_line_at_first_use(monkeypatch):
    resolve.cache_clear()
    monkeypatch.delenv("FASTSCORE_BACKEND", raising=False)
    monkeypatch.setattr(library, "library_file", lambda: None)
    with pytest.warns(UserWarning, match="installed where there was no C\\+\\+ compiler: same samples") as said:
        assert resolve("auto", CPU) is REFERENCE
        assert resolve("auto", CPU) is REFERENCE
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve("reference", CPU) is REFERENCE  # what was asked for is not said
    library.library.cache_clear()
    with pytest.raises(ValueError, match="was not built: install g"):
        resolve("cpp", CPU)
    resolve.cache_clear()
    library.library.cache_clear()
