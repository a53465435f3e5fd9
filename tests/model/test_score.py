"""What a network may take and return, what a model may say of itself, and which inputs are refused before use."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import fastscore as fs
from fastscore.adapters import wrap

D = 4


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(D, D)

    def forward(self, x, t):
        return self.body(x) * t[:, None]


class Three(Two):
    def forward(self, x, t, cond):
        return super().forward(x, t)


class Options(Two):
    """Two tensors, and an option that no condition must be taken for."""

    def forward(self, x, t, *, scale=1.0):
        return super().forward(x, t) * scale


def model(net, **more) -> fs.ScoreModel:
    return fs.ScoreModel(net, (D,), fs.VP(), **more)


def draw(m, **run) -> torch.Tensor:
    return fs.Sampler(m, steps=2, batch=4).run(range(3), **run)


def test_a_network_of_two_arguments_is_called_with_two():
    net = Three()
    expected = draw(model(net))
    two, options = Two(), Options()
    for m in (two, options):
        m.load_state_dict(net.state_dict())
    for way in (two, options, two.forward, lambda x, t: two(x, t), lambda *args: two(*args[:2])):
        assert draw(model(way)).equal(expected)
    parts = {"a": fs.Part((D,), fs.VP())}
    joint = fs.JointModel(lambda u, t: {"a": two(u["a"], t["a"])}, parts)
    assert fs.JointSampler(joint, steps=2, batch=4).run(range(3))["a"].equal(expected)


def test_a_module_of_two_arguments_stays_one():
    net = Two().to(torch.bfloat16).train()
    m = model(net)
    sampler = fs.Sampler(m, steps=1, batch=2)
    assert sampler.net_dtype == torch.bfloat16
    assert sampler.run(range(2)).isfinite().all()
    assert net.training
    assert pickle.loads(pickle.dumps(sampler)).run(range(2)).equal(sampler.run(range(2)))
    with pytest.raises(ValueError, match="the network is on cpu, and a sampler moves nobody's network"):
        fs.Sampler(m, device="cuda:0")


@pytest.mark.parametrize(
    ("net", "more", "message"),
    [
        (lambda x: x, {}, r"called as net\(u, c_noise, cond\) or net\(u, c_noise\), and function cannot be: wrap it"),
        (nn.Linear(D, D), {}, "and Linear cannot be: wrap it"),
        (lambda x, t, cond, more: x, {}, "cannot be: wrap it"),
        (lambda x, t: x, {"classes": 3}, r"called as net\(u, c_noise, cond\), and function cannot be"),
        (lambda x, t: x, {"cond_shape": (2,)}, "function cannot be"),
        (None, {}, "net = None must be a function, not None"),
        (lambda x, t: x, {"modules": (lambda: 0,)}, "each must be an nn.Module"),
        (lambda x, t, c: x, {"classes": -1}, "classes = -1 must be a number of classes"),
        (lambda x, t, c: x, {"classes": 2.0}, "classes = 2.0 must be"),
        (lambda x, t, c: x, {"classes": 3, "null": 4}, r"null = 4 must be a label, 0 \.\. 3"),
        (lambda x, t, c: x, {"classes": 3, "null": True}, "null = True must be a whole number"),
        (lambda x, t, c: x, {"null": 0}, "null = 0 must be a label, 0 .. 0, of a model with classes"),
        (lambda x, t, c: x, {"cond_shape": (2,), "null": 0}, r"null is 0; it must be a tensor of cond_shape, \(2,\)"),
        (lambda x, t, c: x, {"cond_shape": (2,), "null": torch.zeros(3)}, r"null is \(3,\); it must be"),
        (lambda x, t, c: x, {"cond_shape": 2}, r"cond_shape = 2 must be positive integers.*did you mean \(2,\)\?"),
    ],
)
def test_what_a_model_cannot_be(net, more, message):
    with pytest.raises(ValueError, match=message):
        model(net, **more)


@pytest.mark.parametrize("shape", [2, (), (0, 3), (2.0,), (True,), "2", None])
def test_shapes_that_are_none(shape):
    hint = r"; did you mean \(2,\)\?" if shape == 2 else ""
    for make in (lambda: fs.ScoreModel(lambda u, t: u, shape, fs.VP()), lambda: fs.Part(shape, fs.VP())):
        with pytest.raises(ValueError, match="must be positive integers, without the batch axis" + hint):
            make()


def test_a_list_is_a_shape():
    assert fs.ScoreModel(lambda u, t: u, [2, 3], fs.VP()).shape == (2, 3)
    assert fs.ScoreModel(lambda u, t: u, torch.Size([2, 3]), fs.VP()).shape == (2, 3)


@pytest.mark.thirds
@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda u: (u, u), r"a tuple of 2; it must return a tensor: wrap it, .*net\(u, c_noise, cond\)\[0\]"),
        (lambda u: [u], r"a list of 1; it must return a tensor: wrap it"),
        (lambda u: SimpleNamespace(sample=u), r"a SimpleNamespace; it must return a tensor: wrap it, .*cond\)\.sample"),
        (lambda u: None, r"None; it must return a tensor \(does its forward end in a return\?\)"),
        (lambda u: u.numpy(), r"a ndarray; it must return a tensor: wrap it, .*torch\.as_tensor"),
        (lambda u: 0.0, "a float; it must return a tensor"),
        (lambda u: u[:, :2], r"\(4, 2\) for an input of \(4, 4\)"),
        (lambda u: u.sum(1), r"\(4,\) for an input of \(4, 4\)"),
        (lambda u: u.long(), r"torch\.int64; it must return real floating-point numbers"),
        (lambda u: u.to(torch.complex64), r"torch\.complex64; it must return real"),
        (lambda u: u.to("meta"), "a tensor on meta for an input on cpu"),
    ],
)
def test_what_a_network_must_not_return(returned, message):
    m = model(lambda u, t, cond: returned(u))
    parts = {"a": fs.Part((D,), fs.VP())}
    joint = fs.JointModel(lambda u, t: {"a": returned(u["a"])}, parts)
    guide = fs.DynamicThreshold()
    for call in (
        lambda: draw(m),
        lambda: fs.Sampler(m, solver="dopri5", batch=4).run(range(3)),
        lambda: fs.Sampler(m, steps=2, batch=4, parallel=fs.Picard(1)).run(range(3)),
        lambda: fs.Sampler(m, steps=2, batch=4, guide=guide).run(range(3)),
        lambda: fs.JointSampler(joint, steps=2, batch=4).run(range(3)),
    ):
        with pytest.raises(ValueError, match="the network returned.* " + message):
            call()


def test_a_joint_network_returns_all_parts():
    parts = {"a": fs.Part((D,), fs.VP()), "b": fs.Part((D,), fs.VP())}
    for returned, message in (
        (lambda u: {"a": u["a"]}, "returned a; it must return a dict of a, b"),
        (lambda u: u["a"], "returned a Tensor;"),
    ):
        with pytest.raises(ValueError, match=message):
            fs.JointSampler(fs.JointModel(lambda u, t, f=returned: f(u), parts), steps=2, batch=4).run([0])


def test_half_precision_outputs_are_taken():
    m = model(lambda u, t, cond: u.bfloat16())
    assert draw(m).isfinite().all()


# Inputs that are not finite are the caller's, and no fault of the network


def bad(*shape: int) -> torch.Tensor:
    v = torch.zeros(*shape)
    v[1, 0] = torch.nan
    return v


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_inputs_that_are_not_finite_are_named(value):
    net = model(lambda u, t, cond: u, cond_shape=(2,))
    x, cond, noise = (torch.zeros(3, D), torch.zeros(3, 2), torch.zeros(1, 3, D))
    x[1, 0] = cond[1, 0] = noise[0, 1, 0] = value
    start = fs.Sampler(net, steps=2, batch=4, start="data")
    for call, message in (
        (
            lambda: start.run(range(3), init=x, cond=torch.zeros(2)),
            "init is NaN or Inf for 1 of 3 samples, .* position 1",
        ),
        (lambda: draw(net, cond=cond), "cond is NaN or Inf for 1 of 3 samples, .* position 1"),
        (lambda: draw(net, cond=torch.zeros(2), noise=noise), "recorded noise holds NaN or Inf"),
        (
            lambda: draw(net, cond=torch.zeros(2), known=fs.Known(x, torch.ones(D, dtype=torch.bool))),
            "known.y is not finite",
        ),
        (
            lambda: fs.ProbabilityFlow(net).encode(x, cond=torch.zeros(2)),
            "x is NaN or Inf for 1 of 3 samples",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    parts = {"a": fs.Part((D,), fs.VP())}
    joint = fs.JointSampler(fs.JointModel(lambda u, t: u, parts), steps=2, start="data")
    with pytest.raises(ValueError, match=r"init\['a'\] is NaN or Inf"):
        joint.run(range(3), init={"a": x})


# Conditions


def echo(seen: list):
    def net(u, t, cond):
        seen.append(cond.clone())
        return u * 0.5 + cond.to(u.dtype).reshape(len(u), -1)[:, :1]

    return net


RUNS = {
    "plan": {"steps": 3},
    "adaptive": {"solver": fs.BogackiShampine(3.0, 3.0)},
    "picard": {"steps": 3, "parallel": fs.Picard(2)},
    "guide": {"steps": 3, "guide": fs.DynamicThreshold()},
}
DTYPES = (torch.int64, torch.bool, torch.float64, torch.float32, torch.bfloat16, torch.uint8)


@pytest.mark.thirds
@pytest.mark.parametrize("how", RUNS)
@pytest.mark.parametrize("dtype", DTYPES[:4])
def test_conditions_keep_their_dtype_and_padding_is_a_copy_of_one(how, dtype):
    seen, cond = [], torch.tensor([[3.0, 1.0], [5.0, 1.0], [7.0, 1.0]]).to(dtype)
    m = model(echo(seen), cond_shape=(2,))
    sampler = fs.Sampler(m, batch=4, **RUNS[how])
    x = sampler.run(range(3), cond=cond)
    given = set(map(tuple, cond.tolist()))
    for v in seen:
        assert v.dtype == dtype
        assert set(map(tuple, v.tolist())) <= given  # never zeros that nobody gave
    assert sampler.run(range(3), cond=cond).equal(x)
    for other in DTYPES[-2:]:  # one sampler takes one dtype after another
        again = sampler.run(range(3), cond=cond.to(other))
        assert seen[-1].dtype == other
        assert again.equal(fs.Sampler(m, batch=4, **RUNS[how]).run(range(3), cond=cond.to(other)))


def test_conditions_of_other_facades_keep_their_dtype():
    seen, cond = [], torch.tensor([[3, 1], [5, 1], [7, 1]])
    m = model(echo(seen), cond_shape=(2,))
    fs.ProbabilityFlow(m, solver="heun", grid=fs.uniform(2), batch=4).encode(torch.zeros(3, D), cond=cond)
    net = echo(seen)
    joint = fs.JointModel(lambda u, t, c: {"a": net(u["a"], t, c)}, {"a": fs.Part((D,), fs.VP())}, cond_shape=(2,))
    fs.JointSampler(joint, steps=2, batch=4).run(range(3), cond=cond)
    assert all(v.dtype == torch.int64 and set(map(tuple, v.tolist())) <= {(3, 1), (5, 1), (7, 1)} for v in seen)


@pytest.mark.parametrize("how", [*RUNS, "flow", "joint"])
@pytest.mark.parametrize("kind", ["labels", "cond"])
def test_a_condition_left_out_is_refused_unless_the_model_has_a_null_one(how, kind):
    seen: list = []
    condition = {"classes": 3} if kind == "labels" else {"cond_shape": (2,)}
    null = 3 if kind == "labels" else torch.tensor([8.0, 9.0])
    net = echo(seen)

    def run(**more):
        if how == "flow":
            return fs.ProbabilityFlow(model(net, **more), solver="heun", grid=fs.uniform(2), batch=4).encode(
                torch.zeros(3, D)
            )
        if how == "joint":
            joint = fs.JointModel(lambda u, t, c: {"a": net(u["a"], t, c)}, {"a": fs.Part((D,), fs.VP())}, **more)
            return fs.JointSampler(joint, steps=2, batch=4).run(range(3))
        return fs.Sampler(model(net, **more), batch=4, **RUNS[how]).run(range(3))

    with pytest.raises(ValueError, match=rf"{kind} (is|are) missing: this model .*ScoreModel\(null="):
        run(**condition)
    assert not seen
    run(**condition, null=null)
    assert all(v.eq(torch.as_tensor(null)).all() for v in seen)


def test_the_null_class_is_a_label_only_of_a_model_that_has_one():
    seen: list = []
    with pytest.raises(ValueError, match=r"labels 3 \.\. 3 must lie in 0 \.\. 2, and the model has no null class"):
        draw(model(echo(seen), classes=3), labels=3)
    draw(model(echo(seen), classes=3, null=3), labels=3)
    draw(model(echo(seen), classes=3, null=0))  # some networks have it in front
    assert [int(v[0]) for v in seen] == [3, 3, 0, 0]
    with pytest.raises(ValueError, match=r"labels 3 \.\. 3 must lie in 0 \.\. 2; 0 is none"):
        draw(model(echo(seen), classes=3, null=0), labels=3)


def test_guidance_leads_away_from_the_null_condition_of_the_model():
    def firsts(**more):
        seen: list = []
        guidance = more.pop("guidance")
        m = model(echo(seen), **more)
        run = {"labels": 1} if "classes" in more else {"cond": torch.tensor([1, 2])}
        fs.Sampler(m, steps=1, batch=4, guidance=guidance).run([0], **run)
        assert len({v.dtype for v in seen}) == 1  # both evaluations read one dtype
        return [v[0].tolist() for v in seen]

    null = torch.tensor([8.0, 9.0])
    assert firsts(classes=3, null=3, guidance=fs.Guidance(2.0)) == [1, 3]
    assert firsts(classes=3, null=0, guidance=fs.Guidance(2.0)) == [1, 0]
    assert firsts(cond_shape=(2,), null=null, guidance=fs.Guidance(2.0)) == [[1, 2], [8, 9]]
    assert firsts(cond_shape=(2,), guidance=fs.Guidance(2.0, null=null)) == [[1, 2], [8, 9]]
    assert firsts(cond_shape=(2,), null=null + 1, guidance=fs.Guidance(2.0, null=null)) == [[1, 2], [8, 9]]
    for more in ({"classes": 3}, {"cond_shape": (2,)}):
        with pytest.raises(ValueError, match=r"says of none that its network was trained with it: ScoreModel\(null="):
            fs.Sampler(model(echo([]), **more), guidance=fs.Guidance(2.0))


def test_models_of_the_package_have_their_null_class():
    m = fs.load_model("fashion")
    assert m.null == m.classes == 10
    assert np.array_equal(fs.Sampler(m, steps=1, batch=2).request(range(2)).cond, [10, 10])


def test_labels_as_indices_are_named_with_the_remedy():
    table = torch.nn.Embedding(1000, 3)
    nets = (lambda u, t: u + table(t), lambda u, t: u * table.weight[t].mean())
    for net in nets:
        model = fs.ScoreModel(net, (3,), fs.discrete_vp())
        with pytest.raises(ValueError, match=r"wrap\(net, 'x, round\(t\)'\)"):
            fs.Sampler(model, steps=2, batch=2).run([0])
        fs.Sampler(fs.ScoreModel(wrap(net, "x, round(t)"), (3,), fs.discrete_vp()), steps=2, batch=2).run([0])
    with pytest.raises(RuntimeError, match="of its own"):
        fs.Sampler(fs.ScoreModel(fails, (3,), fs.VP()), steps=2, batch=2).run([0])


def fails(u, c_noise):
    raise RuntimeError("an error of its own")
