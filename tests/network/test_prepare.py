"""Networks prepared for sampling: the recipe, its check, the packages, and what happens without them."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastscore.guidance.mixture import Guidance
from fastscore.model.folder import load_model
from fastscore.model.nets import build
from fastscore.model.score import ScoreModel
from fastscore.network import package, timing
from fastscore.network import prepare as network
from fastscore.network.bf16 import RECIPES, HeavyInBf16, Traced
from fastscore.network.cache import private as cache_of
from fastscore.network.jit import has_compiler
from fastscore.network.prepare import Inexact, Numerics, Prepared, Trial, Unfit, numerics, prepare
from fastscore.process.continuous import EDM, VP
from fastscore.process.grid import karras
from fastscore.process.parametrization import Parametrization
from fastscore.sampler import Sampler
from fastscore.solvers import DPMpp2M, Langevin, PredictorCorrector, ReverseDiffusion

CPU = torch.device("cpu")
SPEC = {"name": "UNet", "channels": 1, "size": 8, "width": 16, "mult": [1, 2], "blocks": [1, 1], "classes": 3}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/g++")


def unet() -> ScoreModel:
    torch.manual_seed(0)
    net = build(SPEC)
    for p in net.parameters():
        p.data.normal_(std=0.1)
    return ScoreModel(net, (1, 8, 8), EDM(), Parametrization("edm", "log_sigma/4"), classes=3, null=3)


def values(*shape: int) -> torch.Tensor:
    return torch.linspace(-1.0, 1.0, int(np.prod(shape))).sin().reshape(shape)


# The recipe


def test_heavy_layers_read_bfloat16_and_give_float32():
    x, w, b = values(2, 16, 5, 5), values(24, 16, 3, 3), values(24)
    tokens, matrix = values(2, 7, 16), values(24, 16)
    with HeavyInBf16():
        found = F.conv2d(x, w, b), F.linear(tokens, matrix, bias=b), tokens @ matrix.T.expand(2, 16, 24)
        attended = F.scaled_dot_product_attention(*[tokens[:, None]] * 3)
    low = [v.bfloat16() for v in (x, w, b, tokens, matrix)]
    assert torch.equal(found[0], F.conv2d(*low[:3]).float())
    assert torch.equal(found[1], F.linear(low[3], low[4], low[2]).float())
    assert {v.dtype for v in (*found, attended)} == {torch.float32}
    assert not torch.equal(attended, F.scaled_dot_product_attention(*[tokens[:, None]] * 3))


def test_first_last_and_embedding_layers_stay_float32():
    x, stem, head = values(2, 4, 5, 5), values(64, 4, 3, 3), values(4, 64, 1, 1)
    wide, vector, matrix = values(2, 64, 5, 5), values(2, 64), values(32, 64)

    def outputs():
        return (
            F.conv2d(x, stem), F.conv2d(wide, head), F.linear(vector, matrix), F.group_norm(wide, 4), vector @ matrix.T,
        )  # fmt: skip

    with HeavyInBf16():
        recast = outputs()
    for a, b in zip(recast, outputs(), strict=True):
        assert torch.equal(a, b)


def random_scorenet() -> ScoreModel:
    from fastscore.process.continuous import TutorialVE

    torch.manual_seed(0)
    return ScoreModel(build({"name": "ScoreNet"}).eval(), (1, 28, 28), TutorialVE(), Parametrization("score", "t"))


@pytest.mark.parametrize("make", [random_scorenet, lambda: load_model("fashion")], ids=["random ScoreNet", "fashion"])
def test_the_recipe_costs_less_than_one_percent_of_the_score(make):
    model = make()
    trial = Trial(model, model.net, 20, CPU)
    for recipe in (*RECIPES["cpu"]["bf16"], *RECIPES["cuda"]["bf16"]):
        output, score = trial.errors(Traced(model.net, recipe)).amax(dim=1).tolist()
        assert 1e-4 < score < 0.01, recipe  # bfloat16 it is, and accurate
        assert 1e-4 < output < 0.01, recipe


# The check


def test_the_trial_covers_the_schedule_one_time_a_sample():
    model = unet()
    trial = Trial(model, model.net, 20, CPU)
    sigma = trial.columns[:, 1]
    assert len(sigma) == 20
    assert (sigma[0], sigma[-1]) == (80.0, pytest.approx(0.002))
    few = Trial(model, model.net, 3, CPU)
    assert len(list(few.micro_batches())) == 7
    assert (few.columns[0, 1], few.columns[-1, 1]) == (80.0, pytest.approx(0.002))


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score", "flow"])
def test_the_error_is_that_of_the_score(prediction):
    """Against the algebra of each prediction, written out."""

    def net(u, c_noise, cond=None):
        return 0.3 * u + 0.1

    model = ScoreModel(net, (6,), VP(), Parametrization(prediction, "t"))
    trial = Trial(model, net, 20, CPU)
    output, score = trial.errors(lambda u, c, cond: 1.001 * net(u, c)).amax(dim=1).tolist()
    assert output == pytest.approx(1e-3, rel=1e-3)
    alpha, sigma = (trial.columns[:, k : k + 1].double() for k in (0, 1))
    x = torch.cat([inputs[0] for inputs, _, _ in trial.micro_batches()]).double()
    own = 0.3 * x + 0.1
    beta = (
        torch.from_numpy(np.asarray(VP().dalpha(t_of(trial)))),
        torch.from_numpy(np.asarray(VP().dsigma(t_of(trial)))),
    )

    def eps(f):
        if prediction == "flow":  # dalpha D + dsigma eps, with x = alpha D + sigma eps
            a, b = (v[:, None] for v in beta)
            return (alpha * f - a * x) / (alpha * b - sigma * a)
        return {
            "eps": f,
            "x0": (x - alpha * f) / sigma,
            "v": sigma * x + alpha * f,
            "score": -sigma * f,
        }[prediction]

    true = eps(own)
    wrong = ((eps(1.001 * own) - true).norm(dim=1) / true.norm(dim=1)).max()
    assert score == pytest.approx(float(wrong), rel=1e-3)


def t_of(trial: Trial) -> np.ndarray:
    return trial.columns[:, 5].double().numpy()


def test_a_wrong_network_is_refused():
    model = unet()
    trial = Trial(model, model.net, 8, CPU)
    assert trial.checked(model.net, "fp32") == 0.0
    for factor, kind in ((1.001, "fp32"), (1.02, "bf16"), (float("nan"), "bf16"), (float("nan"), "fp32")):
        with pytest.raises(Inexact, match=f"in {kind} the network's"):
            trial.checked(lambda *inputs, by=factor: model.net(*inputs) * by, kind)


def test_a_prepared_network_takes_the_inputs_it_was_made_for():
    seen = []
    example = (torch.zeros(4, 2), torch.zeros(4), torch.zeros(4, dtype=torch.int64))
    net = Prepared(lambda *inputs: seen.append(inputs) or inputs[0], example, Numerics("fp32", "package"))
    net(torch.zeros(2, 4).T, torch.zeros(1).expand(4), example[2])
    assert all(v.is_contiguous() for v in seen[0])
    for wrong in (
        (torch.zeros(5, 2), torch.zeros(5), torch.zeros(5, dtype=torch.int64)),
        (example[0].double(), example[1], example[2]),
        (example[0], example[1], None),
        (example[0], example[1], torch.zeros(4, 3)),
    ):
        with pytest.raises(ValueError, match=r"prepared for inputs float32\[4, 2\], float32\[4\], int64\[4\], not"):
            net(*wrong)
    assert len(seen) == 1


# Which numerics, and what happens where they cannot be had


def refusing(*errors: Exception | None):
    """Stand in for the compiler: raise these in turn, or succeed where there is None."""
    asked, outcomes = [], iter(errors)

    def packaged(trial, kind, say):
        asked.append(kind)
        if error := next(outcomes):
            raise error
        return Prepared(trial.net, trial.example, Numerics(kind, "package"))

    return asked, packaged


@pytest.mark.parametrize(
    ("native", "errors", "asked", "dtype"),
    [
        (True, [None], ["bf16"], "bf16"),
        (False, [None], ["fp32"], "fp32"),
        (True, [Inexact("far"), None], ["bf16", "fp32"], "fp32"),
        (True, [Unfit("no compiler")], ["bf16"], "own"),
        (True, [Inexact("far"), Inexact("far")], ["bf16", "fp32"], "own"),
    ],
)
def test_auto_takes_the_fastest_numerics_that_hold(monkeypatch, native, errors, asked, dtype):
    monkeypatch.setattr(network, "SMALL", 0)
    monkeypatch.setattr(network, "native_bf16", lambda: native)
    seen, packaged = refusing(*errors)
    monkeypatch.setattr(network, "_packaged", packaged)
    said = []
    model = prepare(unet(), 4, network="auto", say=said.append)
    assert (seen, numerics(model.net).dtype) == (asked, dtype)
    assert len(said) == (len(asked) > 1 or dtype == "own")
    assert (numerics(model.net).instead == "far") == (dtype == "fp32" and native)


def test_small_networks_and_functions_stay_as_they_are():
    model = unet()
    assert prepare(model, 4, say=pytest.fail) is model
    function = ScoreModel(lambda u, c_noise, cond: u, (2,), VP())
    assert prepare(function, 4, say=pytest.fail) is function
    for given, reason in (
        (function, "needs an nn.Module"),
        (ScoreModel(Wrapped(nn.Conv2d(1, 1, 1).bfloat16()), (1, 4, 4), VP()), "not torch.bfloat16"),
        (ScoreModel(Wrapped(nn.Identity()), (1, 4, 4), VP()), "not none"),
    ):
        said = []
        assert prepare(given, 4, network="fp32", say=said.append) is given
        assert len(said) == 1
        assert reason in said[0]


def test_without_a_compiler_the_network_runs_as_it_is(no_compiler):
    assert not has_compiler()
    model, said = unet(), []
    assert prepare(model, 4, network="bf16", say=said.append) is model
    assert said == ["the network runs as it is: no C++ compiler (g++ or clang++)"]
    sampler = Sampler(model, grid=karras(2), batch=4, network="fp32")
    with pytest.warns(UserWarning, match="no C\\+\\+ compiler"):
        x = sampler.run(range(3))
    assert torch.equal(x, Sampler(model, grid=karras(2), batch=4).run(range(3)))
    assert sampler.numerics == Numerics()


class Branching(nn.Module):
    """Looks at its values, which cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, u, c_noise, cond=None):
        return self.layer(u) if u.sum() > 0 else u


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_a_network_that_returns_no_output_says_so_before_it_is_compiled(monkeypatch, kind):
    class Pair(nn.Conv2d):
        def forward(self, u, c_noise, cond=None):  # pyright: ignore[reportIncompatibleMethodOverride]
            return super().forward(u), u

    monkeypatch.setattr(package, "build", lambda *_: pytest.fail("compiled"))
    model = ScoreModel(Pair(1, 1, 3, padding=1), (1, 8, 8), EDM(), Parametrization("edm"))
    with pytest.raises(ValueError, match=r"returned a tuple of 2; it must return a tensor: wrap it"):
        Sampler(model, steps=2, batch=2, network=kind).run(range(2))


def test_a_network_whose_parameters_are_made_by_its_first_call_is_sampled():
    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.LazyConv2d(4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)

        def forward(self, u, c_noise, cond=None):
            return self.last(self.first(u))

    def lazy() -> ScoreModel:
        return ScoreModel(Lazy(), (1, 8, 8), EDM(), Parametrization("edm"))

    for kind, said in (("own", []), ("auto", []), ("fp32", ["call the network once"])):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            sampler = Sampler(lazy(), steps=2, batch=8, network=kind)
            x = sampler.run(range(3))
        words = [str(w.message) for w in caught if "Lazy modules are a new feature" not in str(w.message)]
        assert len(words) == len(said) and all(a in b for a, b in zip(said, words, strict=True)), words
        assert torch.equal(sampler.run(range(3)), x)


def test_what_cannot_be_traced_runs_as_it_is(monkeypatch):
    monkeypatch.setattr(network, "has_compiler", lambda: True)
    model, said = ScoreModel(Branching(), (2,), VP()), []
    assert prepare(model, 4, network="fp32", say=said.append) is model
    assert len(said) == 2
    assert "cannot compile it" in said[1]
    assert "\n" not in said[1]
    folder = package.folder()
    assert [p.suffix for p in folder.iterdir()] == [".json"]  # nothing half made stays, but why it failed


def test_a_failure_is_remembered_until_something_changes(monkeypatch, tmp_path):
    """A network that torch cannot compile costs the attempt once, not on every run; also without a message."""
    tried = []

    def fails(key, net, inputs, say):
        tried.append(key)
        raise AssertionError

    monkeypatch.setattr(package, "build", fails)
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))

    def prepared(model):
        said = []
        assert prepare(model, 4, network="fp32", say=said.append) is model
        return said

    first = prepared(unet())
    assert len(first) == 2  # that it compiles, and why not
    assert first[1] == "the network runs as it is: torch cannot compile it (AssertionError without a message)"
    (again,) = prepared(unet())
    note = package.folder() / f"{tried[0]}.json"
    assert again == (
        "the network runs as it is: torch cannot compile it (AssertionError without a message; "
        f"remembered in {note}, delete it to try again)"
    )
    assert len(tried) == 1
    compiler.write_text("#!/bin/sh\n# another one\n")
    assert len(prepared(unet())) == 2
    note.unlink()
    assert len(prepared(unet())) == 2
    other = unet()
    other.net.head.weight.data.mul_(1.05)
    assert len(prepared(other)) == 2
    assert len(tried) == 4


def test_a_space_in_the_folder_of_temporary_files_is_said_before_the_attempt_and_not_remembered(monkeypatch, tmp_path):
    monkeypatch.setattr(network, "has_compiler", lambda: True)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "a b"))
    monkeypatch.setattr(package, "build", lambda *args: pytest.fail("compiled"))
    said = []
    prepare(unet(), 4, network="fp32", say=said.append)
    assert len(said) == 1
    assert "a b': set TMPDIR to a folder without a space" in said[0]
    assert not any(package.folder().iterdir())


def test_a_full_disk_is_not_remembered(monkeypatch):
    monkeypatch.setattr(network, "has_compiler", lambda: True)
    monkeypatch.setattr(package, "build", lambda *args: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    for _ in range(2):
        said = []
        prepare(unet(), 4, network="fp32", say=said.append)
        assert "No space left" in said[1]


def test_what_cannot_be_frozen_is_compiled_without(monkeypatch, tmp_path):
    """torch 2.6 cannot freeze linear layers."""
    import torch._inductor

    asked = []

    def compiles(program, package_path, inductor_configs):
        asked.append(inductor_configs)
        os.write(2, b"a warning of the compiler\n")
        if inductor_configs:
            raise AssertionError

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", compiles)
    package._compile(None, tmp_path / "network.pt2")
    assert asked == [{"freezing": True}, {}]
    monkeypatch.setattr(package, "OPTIONS", ({"freezing": True},))
    with pytest.raises(AssertionError):
        package._compile(None, tmp_path / "network.pt2")


def test_what_a_compiler_says_is_in_the_one_line():
    error = RuntimeError("C++ compile error\n\nOutput:\nIn file included\nx.cpp:7:1: error: no such header\nnote: more")
    assert package.one_line(error) == "RuntimeError: C++ compile error x.cpp:7:1: error: no such header"


def test_compilers_write_to_a_file_and_not_to_the_users_terminal(capfd, tmp_path):
    with package.quiet(tmp_path / "log"):
        os.write(2, b"a warning of the compiler\n")
    os.write(2, b"ours\n")
    assert capfd.readouterr().err == "ours\n"
    assert (tmp_path / "log").read_text() == "a warning of the compiler\n"


# The verdict of a check is kept


@pytest.fixture
def kept(monkeypatch):
    """A package of the network itself, as it was when it was built; and the checks that were done."""
    calls, checks, real = {}, [], Trial.checked

    def build(key, net, inputs, say):
        calls[key] = net
        entry = {"file": f"{key}-0.pt2", "sha256": "", "checked": {}}
        return package.Package(net, package.folder() / f"{key}.json", entry)

    def load(key, say):
        note = package.folder() / f"{key}.json"
        return package.Package(calls[key], note, json.loads(note.read_text())) if key in calls else None

    def checked(self, call, kind):
        checks.append(kind)
        return real(self, call, kind)

    monkeypatch.setattr(network, "has_compiler", lambda: True)
    monkeypatch.setattr(package, "build", build)
    monkeypatch.setattr(package, "load", load)
    monkeypatch.setattr(Trial, "checked", checked)
    return checks


def test_a_check_is_done_once_for_what_it_depends_on(kept, monkeypatch):
    def prepared(model=None, **options):
        kept.clear()
        net = prepare(model or unet(), 4, network="fp32", say=lambda line: None, **options).net
        assert numerics(net).error == 0.0
        return len(kept)

    assert prepared() == 1
    assert prepared() == 0  # as in the next process
    assert prepared(recheck=True) == 1  # on request
    assert prepared() == 0
    wider = replace(unet(), schedule=EDM(sigma_max=20.0))  # other inputs for the same package
    assert (prepared(wider), prepared(wider), prepared()) == (1, 0, 0)
    other = unet()
    other.net.head.weight.data.mul_(1.05)
    assert (prepared(other), prepared(other)) == (1, 0)
    monkeypatch.setattr("fastscore.network.trial.CHECK", 99)
    assert prepared() == 1
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert prepared() == 1


def test_a_wrong_package_has_no_verdict(kept):
    model = unet()
    prepare(model, 4, network="fp32", say=lambda line: None)
    note = next(package.folder().glob("*.json"))
    note.write_text(json.dumps({**json.loads(note.read_text()), "checked": {}}))
    model.net.head.weight.data.mul_(1.05)  # in place: the package stands for the network that it shares weights with
    key = note.stem
    trial = Trial(unet(), unet().net.eval(), 4, CPU)
    with pytest.raises(Inexact):
        trial.checked(package.load(key, pytest.fail).call, "fp32")
    assert json.loads(note.read_text())["checked"] == {}


# Some lines at a time


def strips(lines: int | None):
    """A network whose values tell which lines it saw together."""
    seen = []

    def call(u, c_noise, cond):
        seen.append((u.clone(), cond.clone()))
        return u * c_noise[:, None] + cond[:, None]

    example = (torch.zeros(lines or 5, 3), torch.zeros(lines or 5), torch.zeros(lines or 5, dtype=torch.int64))
    return seen, Prepared(call, example, Numerics("fp32", "package", lines=lines))


@pytest.mark.parametrize("n", [1, 3, 4, 5, 8, 9])
def test_a_package_takes_any_number_of_lines_and_computes_some_at_a_time(n):
    seen, net = strips(4)
    u, t, cond = values(n, 3), values(n), torch.arange(n)
    assert net(u, t, cond).equal(u * t[:, None] + cond[:, None])
    assert [len(v) for v, _ in seen] == [4] * -(-n // 4)
    assert all(v.is_contiguous() and v.data_ptr() % 64 == 0 for pair in seen for v in pair)
    whole = torch.cat([c for _, c in seen])
    assert whole[n:].eq(n - 1).all()  # padding repeats the last line
    assert net.needed(n) == len(whole)


def test_lines_of_padding_are_not_computed(monkeypatch):
    """A few samples cost a few, and are the same to the bit as among many."""
    seen = []

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, u, c_noise, cond=None):
            seen.append(len(u))
            return self.layer(u) if cond is None else self.layer(u) * (1.0 + cond[:, None])

    def packaged(trial, kind, say):
        return Prepared(trial.net, trial.example, Numerics(kind, "package", lines=trial.shape[0]))

    monkeypatch.setattr(network, "_packaged", packaged)
    torch.manual_seed(0)
    model = ScoreModel(Counting(), (3,), VP(), classes=2, null=2)
    for solver in (DPMpp2M(), PredictorCorrector(ReverseDiffusion(), Langevin(snr=0.16))):
        settings = {"solver": solver, "steps": 3, "network": "fp32", "guidance": Guidance(2.0)}
        sampler = Sampler(model, batch=64, **settings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whole = sampler.run(range(70), labels="random")
            assert set(seen) == {16}
            evaluations = len(seen)
            for ids in (range(3), [69, 5, 17], range(20, 60)):
                seen.clear()
                assert sampler.run(ids, labels="random").equal(whole[list(ids)])
                assert set(seen) == {16}
            assert len(seen) * 5 == evaluations * 3  # 3 turns for 40 samples, 5 for 64 and 6
            seen.clear()
            batches = Sampler(model, batch=40, **settings)
            assert batches.run(range(70), labels="random").equal(whole)  # nor on the micro-batch
        seen.clear()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: prepare(m, network="fp16"),
            "'fp16' .*must be one of own, auto, fp32, tf32, bf16, compile, regional",
        ),
        (lambda m: Sampler(m, network="fast"), "'fast' .*must be one of own"),
        (lambda m: Sampler(m, network="auto", dtype=torch.float64), "float32 state"),
        (lambda m: prepare(ScoreModel(Prepared(m.net, (), Numerics()), (2,), VP())), "prepared already"),
    ],
)
def test_unfit_settings_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(unet())


# Packages


def test_a_key_holds_what_a_package_depends_on(monkeypatch):
    net = unet().net
    keys = {package.key_of(net, (4, 1, 8, 8), "fp32"), package.key_of(unet().net, (4, 1, 8, 8), "fp32")}
    assert len(keys) == 1
    keys |= {package.key_of(net, (5, 1, 8, 8), "fp32"), package.key_of(net, (4, 1, 8, 8), "bf16")}
    with torch.no_grad():
        net.features.freqs[0] += 1e-6
    keys.add(package.key_of(net, (4, 1, 8, 8), "fp32"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    keys.add(package.key_of(net, (4, 1, 8, 8), "fp32"))
    assert len(keys) == 5


def test_what_is_no_package_is_ignored_in_one_line():
    said, home = [], package.folder()
    assert package.load("absent", said.append) is None
    assert not said
    (home / "k-a.pt2").write_bytes(b"not a package")
    right = hashlib.sha256(b"not a package").hexdigest()
    for note, reason in (
        ("{", "JSON"),
        ("[]", "TypeError"),
        ("{}", "KeyError"),
        (json.dumps({"file": "k-a.pt2", "sha256": "0" * 64, "checked": {}}), "not those that were written"),
        (json.dumps({"file": "k-a.pt2", "sha256": right, "checked": {}}), "RuntimeError"),
    ):
        (home / "k.json").write_text(note)
        (home / "k.json").chmod(0o600)
        assert package.load("k", said.append) is None
        assert reason in said[-1]
        assert "\n" not in said[-1]
    assert len(said) == 5


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="a package needs g++ to be built")
def test_a_package_is_built_once_checked_and_kept(monkeypatch):
    model, said = unet(), []
    first = prepare(model, 4, network="bf16", say=said.append)
    assert len(said) == 1
    assert "once" in said[0]
    how = numerics(first.net)
    assert (how.dtype, how.compile, how.threads) == ("bf16", "package", torch.get_num_threads())
    assert 1e-4 < how.error < 0.01
    assert {p.suffix for p in package.folder().iterdir()} == {".json", ".pt2"}

    # A sample is the same alone, in another order and among others.
    def draw(m, ids):
        return Sampler(m, grid=karras(4), batch=4).run(ids, labels="random")

    whole = draw(first, range(9))
    assert torch.equal(draw(first, [8, 2]), whole[[8, 2]])
    assert (whole - draw(model, range(9))).abs().max() < 0.05 * whole.abs().max()

    # The next process needs no compiler, and gives the same bits.
    monkeypatch.setenv("CXX", "/nowhere/g++")
    again = prepare(unet(), 4, network="bf16", say=pytest.fail)
    assert numerics(again.net) == how
    assert torch.equal(draw(again, range(9)), whole)

    # A package of another network under this key is found out, and so are bytes that changed.
    monkeypatch.setattr(package, "key_of", lambda *args: how.key)
    other = unet()
    other.net.head.weight.data.mul_(1.05)
    assert prepare(other, 4, network="bf16", say=said.append, recheck=True) is other
    assert "ignored" in said[1]
    file = next(package.folder().glob("*.pt2"))
    file.write_bytes(file.read_bytes()[:-1000])
    assert prepare(unet(), 4, network="bf16", say=said.append).net.__class__ is not Prepared
    assert "not those that were written" in said[3]


class Wrapped(nn.Module):
    """Layers called as a score network."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, u, c_noise, cond=None):
        return self.layers(u) * c_noise[:, None, None, None]


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="torch.compile needs g++ on the CPU")
def test_the_way_of_cuda_agrees_on_the_cpu():
    """On CUDA the same trace goes through torch.compile."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 1, 1)
    )
    model = ScoreModel(Wrapped(layers), (1, 8, 8), EDM(), Parametrization("edm", "log_sigma/4"))
    trial = Trial(model, model.net.eval(), 4, CPU)
    said: list[str] = []
    net = network._jit(trial, "bf16", said.append)
    assert len(said) == 1  # that it compiles
    assert (net.numerics.dtype, net.numerics.compile, net.numerics.residual) == ("bf16", "full", "bf16")
    assert 1e-4 < trial.errors(net)[1].max() < 0.01


# The micro-batch


def test_the_probe_stops_where_a_larger_micro_batch_gains_nothing(monkeypatch):
    asked = []

    def seconds(model, size, device):
        asked.append((torch.get_num_threads(), size))
        return (100 + max(size, 64)) / torch.get_num_threads() ** 0.5  # fixed costs, and a floor

    monkeypatch.setattr(timing, "_seconds", seconds)
    before = torch.get_num_threads()
    model = unet()
    choice = timing.choose_batch(model, sizes=(16, 32, 64, 128, 4096), threads=(1, 2))
    assert (choice.batch, choice.threads) == (4096, 2)
    assert asked == [(n, size) for n in (1, 2) for size in (16, 32, 64, 128, 4096)]
    assert timing.choose_batch(model, sizes=(16, 32, 64, 128, 4096), threads=(1, 2)) == choice
    assert len(asked) == 10  # the second time it is read
    monkeypatch.setattr(timing, "_seconds", lambda model, size, device: float(max(size, 32)))
    choice = timing.choose_batch(model, sizes=(16, 32, 64, 128), threads=(1,))
    assert choice.batch == 32
    assert "1 x 128" not in choice.rates
    assert torch.get_num_threads() == before


def test_the_probe_ends_where_memory_does(monkeypatch):
    room = [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory"), MemoryError()]
    for error in room:

        def seconds(model, size, device, error=error):
            assert size < 256  # nothing larger is tried
            if size > 64:
                raise error
            return 1.0

        monkeypatch.setattr(timing, "_seconds", seconds)
        model = unet()
        model.net.head.weight.data.add_(room.index(error))  # another key each time
        choice = timing.choose_batch(model, sizes=(16, 64, 128, 256), threads=(1,))
        assert (choice.batch, choice.rates) == (64, {"1 x 16": 16.0, "1 x 64": 64.0})
        model.net.head.weight.data.mul_(2.0)
        with pytest.raises(ValueError, match=r"no memory for 128 samples of \(1, 8, 8\) at once; give smaller sizes"):
            timing.choose_batch(model, sizes=(128,), threads=(1,))
    monkeypatch.setattr(timing, "_seconds", lambda *_: (_ for _ in ()).throw(RuntimeError("a shape is wrong")))
    with pytest.raises(RuntimeError, match="a shape is wrong"):
        timing.choose_batch(unet(), sizes=(8,))


def test_a_choice_is_that_of_its_gpu(monkeypatch):
    """Two cards in one machine share the processor, not the micro-batch."""
    keys = set()
    cuda = SimpleNamespace(place=torch.device("cuda", 0))
    monkeypatch.setattr(timing, "Execution", lambda device: SimpleNamespace(on=lambda net: cuda))
    monkeypatch.setattr(timing, "_seconds", lambda *_: 1.0)
    for name in ("NVIDIA H100", "NVIDIA A100"):
        monkeypatch.setattr(timing, "accelerator", lambda place, name=name: [name])
        timing.choose_batch(unet(), sizes=(8,))
        keys |= {file.name for file in cache_of("batches").iterdir()}
    assert len(keys) == 2


def test_the_probe_times_real_networks(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # all numbers of threads
    for model in (unet(), ScoreModel(lambda u, c_noise, cond: u, (2,), VP())):
        choice = timing.choose_batch(model, sizes=(2, 4))
        assert choice.batch in (2, 4)
        assert all(rate > 0 for rate in choice.rates.values())
    with pytest.raises(ValueError, match="must be positive"):
        timing.choose_batch(unet(), sizes=(0,))
