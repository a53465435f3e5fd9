"""Conditions by name: each tensor in its own dtype, labels beside, lengths that requests choose; on every path."""

from __future__ import annotations

import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import fastscore as fs
from fastscore import chains
from fastscore.engine.capture import Graphed, Tape
from fastscore.model.folder import save_model
from fastscore.model.nets import build
from fastscore.network.prepare import prepare
from fastscore.network.timing import choose_batch
from fastscore.output.store.formats import FORMATS, Shard, decode, encode
from fastscore.output.store.job import Asked, conditions, job_of

D, N = 4, 7
SHAPES = {"tokens": (None,), "mask": (None,), "strength": ()}
NULL = {"labels": 3, "tokens": torch.tensor([9, 9]), "mask": torch.tensor([True, False])}
RUNS = {
    "plan": {"steps": 3},
    "ddpm": {"solver": "ddpm", "steps": 3},
    "picard": {"steps": 3, "parallel": fs.Picard(2)},
    "guide": {"steps": 3, "guide": fs.DynamicThreshold()},
    "adaptive": {"solver": fs.BogackiShampine(3.0, 3.0)},
    "adaptive guide": {"solver": fs.BogackiShampine(3.0, 3.0), "guide": fs.DynamicThreshold()},
    "sde": {"solver": fs.GottaGoFast(3.0, 3.0)},
}
TABLE = torch.linspace(-1.0, 1.0, 11 * D).view(11, D)
SEEN: list[dict] = []


def net(u, t, cond):
    """Take the tokens that are not masked, with the strength of the sample; and take the dict that it gets apart."""
    SEEN.append({name: v.clone() for name, v in cond.items()})
    tokens, mask, labels = cond.pop("tokens"), cond.pop("mask"), cond.pop("labels")
    told = (TABLE[tokens] * mask[..., None]).sum(1) + TABLE[labels]
    return 0.3 * u + told.to(u.dtype) * cond["strength"].to(u.dtype)[:, None]


def model(**fields):
    fields = {"classes": 3, "cond_shape": SHAPES, "null": NULL, **fields}
    return fs.ScoreModel(net, (D,), fs.VP(), fs.Parametrization("v"), **fields)


def cond(length: int = 5, n: int = N) -> dict:
    k = torch.arange(n * length).view(n, length)
    return {"tokens": k % 11, "mask": k % 3 > 0, "strength": torch.linspace(0.1, 1.0, n)}


def told(at=slice(None), length: int = 5) -> dict:
    return {"labels": torch.arange(N)[at] % 3, "cond": {name: v[at] for name, v in cond(length).items()}}


@pytest.fixture(autouse=True)
def seen():
    SEEN.clear()
    return SEEN


def plain_values(condition: dict) -> set:
    """The lines of a condition, each with the dtypes of its tensors."""
    names, values = list(condition), [v.tolist() for v in condition.values()]
    return {str((names, [v.dtype for v in condition.values()], line)) for line in zip(*values, strict=True)}


def some(cases, *quick):
    """Cases as parameters, those that are not quick enough for every day marked as slow."""
    return [pytest.param(case, marks=() if case in quick else pytest.mark.slow) for case in cases]


CASES = [f"{how}, {mixed}" for how in RUNS for mixed in ("alone", "guided")]


@pytest.mark.thirds
@pytest.mark.parametrize("case", some(CASES, "plan, alone", "picard, guided", "guide, guided", "adaptive, guided"))
def test_a_sample_depends_on_its_own_condition_and_nothing_else(case):
    how, mixed = case.split(", ")
    guidance = fs.Guidance(1.5) if mixed == "guided" else None
    sampler = fs.Sampler(model(), batch=3, guidance=guidance, **RUNS[how])
    x = sampler.run(range(N), 5, **told())
    assert not x.equal(fs.Sampler(model(), batch=3, guidance=guidance, **RUNS[how]).run(range(N), 5, **told(length=4)))
    if how == "picard":  # the sweeps end at the states of one step after another
        assert x.allclose(
            fs.Sampler(model(), batch=3, guidance=guidance, steps=3).run(range(N), 5, **told()), atol=1e-5
        )
    order = [6, 0, 3, 4]
    assert sampler.run(order, 5, **told(order)).equal(x[order])
    whole = sampler.request(range(N), 5, **told())
    assert torch.cat([sampler.run(whole.part(at)) for at in (slice(0, 2), slice(2, 7))]).equal(x)
    assert sampler.run(whole.at([5, 1])).equal(x[[5, 1]])


@pytest.mark.parametrize(
    "how", some([*RUNS, "flow", "likelihood", "joint"], "plan", "picard", "adaptive", "flow", "joint")
)
def test_every_network_gets_what_was_given_in_the_dtypes_it_was_given_in(how, seen):
    given = told(length=3)
    if how in ("flow", "likelihood"):
        flow = fs.ProbabilityFlow(model(), solver="heun", grid=fs.uniform(2), batch=4)
        flow.encode(torch.zeros(N, D), **given) if how == "flow" else flow.log_likelihood(torch.zeros(N, D), **given)
    elif how == "joint":
        joint = fs.JointModel(lambda u, t, c: {"a": net(u["a"], t, c)}, {"a": fs.Part((D,), fs.VP())}, 3, SHAPES, NULL)
        x = fs.JointSampler(joint, steps=2, batch=4).run(range(N), **given)["a"]
        assert x.equal(fs.JointSampler(joint, steps=2, batch=4).run(range(N), **given)["a"])
    else:
        fs.Sampler(model(), batch=4, **RUNS[how]).run(range(N), **given)
    lines = plain_values({"labels": given["labels"], **given["cond"]})
    assert set.union(*map(plain_values, seen)) == lines  # padding repeats one of them


def test_a_network_without_classes_gets_the_tensors_alone(seen):
    def named(u, t, cond):
        seen.append(cond)
        return 0.3 * u

    m = fs.ScoreModel(named, (D,), fs.VP(), cond_shape={"b": [2, 3], "a": ()})
    fs.Sampler(m, steps=1, batch=2).run([0], cond={"a": torch.tensor(2.0), "b": torch.ones(2, 3, dtype=torch.uint8)})
    assert [(k, v.dtype, v.tolist()) for k, v in seen[0].items()] == [
        ("b", torch.uint8, [[[1] * 3] * 2] * 2),
        ("a", torch.float32, [2.0, 2.0]),
    ]
    assert m.cond_shape == {"b": (2, 3), "a": ()}


def test_one_tensor_without_a_name_may_have_a_length_of_its_request_too(seen):
    def one(u, t, cond):
        seen.append({"cond": cond})
        return 0.3 * u + cond.sum((1, 2), dtype=u.dtype)[:, None]

    m = fs.ScoreModel(one, (D,), fs.VP(), cond_shape=[None, 2], null=torch.zeros(1, 2))
    sampler = fs.Sampler(m, steps=1, batch=2, guidance=fs.Guidance(2.0))
    for length in (3, 1, 4):
        tokens = torch.arange(2 * N * length).view(N, length, 2)
        x = sampler.run(range(N), cond=tokens)
        assert sampler.run([5], cond=tokens[5]).equal(x[[5]])
    assert {tuple(v["cond"].shape) for v in seen} == {(2, 3, 2), (2, 1, 2), (2, 4, 2)}
    with pytest.raises(ValueError, match=r"cond is \(5, 1\); it must be a tensor \(None, 2\), or \(7, None, 2\)"):
        sampler.run(range(N), cond=torch.zeros(5, 1))


def test_lengths_and_dtypes_change_from_request_to_request():
    sampler = fs.Sampler(model(), steps=2, batch=3, guidance=fs.Guidance(2.0))
    places = []
    for length, dtype in ((5, torch.int64), (5, torch.int64), (2, torch.int64), (5, torch.int32), (0, torch.int32)):
        given = told(length=length)
        given["cond"]["tokens"] = given["cond"]["tokens"].to(dtype)
        x = sampler.run(range(N), **given)
        assert x.equal(fs.Sampler(model(), steps=2, batch=3, guidance=fs.Guidance(2.0)).run(range(N), **given))
        held = sampler.engine.loop.conditions
        places.append((held.made, held.first["tokens"].data_ptr(), held.first["mask"].data_ptr()))
        assert held.second["strength"] is held.first["strength"]
    assert places[0] == places[1]  # a graph reads the same memory
    assert [made for made, *_ in places] == [1, 1, 2, 3, 4]  # and is captured anew where it would not


@pytest.mark.slow
def test_a_captured_loop_reads_new_conditions():
    sampler = fs.Sampler(model(), steps=2, batch=N, guidance=fs.Guidance(2.0), backend="reference")
    loop, first, second = sampler.engine.loop, sampler.request(range(N), **told()), sampler.request(range(N), **told())
    for v in second.cond.values():
        v.copy_(v.flip(0))
    loop.load(first)
    graphed = Graphed(loop, Tape(), "loop")
    for request in (first, second):
        loop.load(request)
        assert graphed.run().equal(sampler.run(request))
    assert not sampler.run(first).equal(sampler.run(second))


def firsts(seen: list, names=("labels", "tokens", "mask", "strength")) -> list:
    return [[v[name][0].tolist() for name in names] for v in seen]


@pytest.mark.parametrize(
    ("of_model", "of_guidance", "expected"),
    [
        (NULL, None, [3, [9, 9], [True, False], 0.5]),
        ({"strength": torch.tensor(0.0)}, None, [1, [4, 5, 6], [False, True, True], 0.0]),
        (3, None, [3, [4, 5, 6], [False, True, True], 0.5]),
        (NULL, {"tokens": torch.tensor([7])}, [1, [7], [False, True, True], 0.5]),
        (None, 0, [0, [4, 5, 6], [False, True, True], 0.5]),
        (None, {"labels": 2, "strength": torch.tensor(8)}, [2, [4, 5, 6], [False, True, True], 8.0]),
    ],
)
def test_guidance_leads_away_name_by_name(of_model, of_guidance, expected, seen):
    guidance = fs.Guidance(2.0, null=of_guidance)
    given = {
        "tokens": torch.tensor([4, 5, 6]),
        "mask": torch.tensor([False, True, True]),
        "strength": torch.tensor(0.5),
    }
    sampler = fs.Sampler(model(null=of_model), steps=1, batch=2, guidance=guidance)
    sampler.run([0], labels=1, cond=given)
    own = [1, [4, 5, 6], [False, True, True], 0.5]
    assert firsts(seen) == [own, expected]
    assert {k: v.dtype for k, v in seen[0].items()} == {k: v.dtype for k, v in seen[1].items()}


def test_a_label_leads_guidance_away_of_a_model_of_classes_alone(seen):
    def labelled(u, t, cond):
        seen.append({"labels": cond.clone()})
        return 0.3 * u

    m = fs.ScoreModel(labelled, (D,), fs.VP(), classes=3)
    fs.Sampler(m, steps=1, batch=2, guidance=fs.Guidance(2.0, null=2)).run([0], labels=1)
    assert firsts(seen, ["labels"]) == [[1], [2]]
    with pytest.raises(ValueError, match=r"guidance: null = 4 must be a label, 0 \.\. 3"):
        fs.Sampler(m, guidance=fs.Guidance(2.0, null=4))


def test_what_is_left_out_is_the_null_condition_of_the_model(seen):
    sampler = fs.Sampler(model(null={**NULL, "strength": torch.tensor(0.25)}), steps=1, batch=2)
    sampler.run([0])
    sampler.run([0], cond={})
    sampler.run([0], labels=2, cond={"strength": torch.tensor([0.5]), "mask": torch.tensor([False, True])})
    null = [3, [9, 9], [True, False], 0.25]
    assert firsts(seen) == [null, null, [2, [9, 9], [False, True], 0.5]]
    assert fs.Sampler(model(null=3), steps=1).request(range(50), labels="random", cond=cond(2, 50)).cond[
        "labels"
    ].unique().tolist() == [0, 1, 2]


def give(**values) -> dict:
    return {"labels": 0, "cond": {**cond(), **values}}


def lacking(*names: str) -> dict:
    return {"labels": 0, "cond": {name: v for name, v in cond().items() if name not in names}}


NAN = torch.zeros(N)
NAN[2] = torch.nan
REFUSED = [
    (
        lacking("mask", "strength"),
        r"cond lacks mask \(None,\), strength \(\): give 'mask' in cond=, or say in the model",
    ),
    ({"labels": 0}, "cond lacks tokens"),
    ({"labels": 0, "cond": {}}, "cond lacks tokens"),
    ({"cond": cond()}, r"labels are missing: .* ScoreModel\(null=\{'labels': 3\}\)"),
    (give(token=torch.zeros(3)), r"cond has 'token'; this model takes tokens, mask, strength"),
    (give(labels=torch.zeros(N)), r"cond has 'labels'; .* the class is given as labels="),
    (
        {"labels": 0, "cond": torch.zeros(N, 5)},
        r"cond is a tensor \(7, 5\); this model takes a dict of tensors: tokens, mask",
    ),
    ({"labels": 0, "cond": [torch.zeros(5)]}, "cond is a list; this model takes a dict"),
    (give(tokens=[1, 2, 3]), r"cond\['tokens'\] is list; it must be a tensor \(None,\), or \(7, None\)"),
    (give(tokens=np.zeros((N, 5))), r"cond\['tokens'\] is ndarray"),
    (give(tokens=None), r"cond\['tokens'\] is NoneType"),
    (give(strength=torch.zeros(N, 1)), r"cond\['strength'\] is \(7, 1\); it must be a tensor \(\), or \(7,\)"),
    (give(tokens=torch.zeros(N + 1, 5)), r"cond\['tokens'\] is \(8, 5\)"),
    (give(strength=NAN), r"cond\['strength'\] is NaN or Inf for 1 of 7 samples, the first at position 2"),
    (give(strength=torch.tensor(torch.inf)), r"cond\['strength'\] is NaN or Inf for 7 of 7"),
    (give(tokens=torch.zeros(N, 5, dtype=torch.complex64)), r"cond\['tokens'\] is complex"),
    (give(tokens=torch.eye(N).to_sparse()), r"cond\['tokens'\] is sparse"),
    (give(tokens=torch.zeros(N, 5, device="meta")), r"cond\['tokens'\] is on meta"),
    (give(strength=torch.zeros(N).to(torch.float8_e4m3fn)), "is torch.float8_e4m3fn, .* give float16 or wider"),
    (give(strength=torch.zeros(N, requires_grad=True)), r"cond\['strength'\] requires a gradient"),
    ({"labels": 4, "cond": cond()}, r"labels 4 \.\. 4 must lie in 0 \.\. 2"),
]


@pytest.mark.parametrize(("given", "message"), REFUSED)
def test_a_condition_that_does_not_fit_is_refused_by_its_name(given, message, seen):
    m = model(null=None)
    flow = fs.ProbabilityFlow(m)
    for call in (fs.Sampler(m).request, fs.Sampler(m).run):
        with pytest.raises(ValueError, match=message):
            call(range(N), **given)
    for call in (flow.encode, flow.log_likelihood):
        with pytest.raises(ValueError, match=message):
            call(torch.zeros(N, D), **given)
    assert not seen


def declared(**fields):
    return lambda: model(**{"null": None, **fields})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (declared(cond_shape=(2,)), r"not both: name it, cond_shape=\{'cond': \(2,\)\}. Its network then gets a dict"),
        (declared(cond_shape={}), "cond_shape = {} names no tensor"),
        (declared(cond_shape={"labels": (2,)}), "'labels' is the class: say classes="),
        (declared(cond_shape={"a b": (2,)}), "the name 'a b' must be up to 64 letters"),
        (declared(cond_shape={"a" * 65: (2,)}), "must be up to 64 letters"),
        (declared(cond_shape={1: (2,)}), "the name 1 must be"),
        (declared(cond_shape={"a": (1,), "A": (1,)}), "must differ in more than their case"),
        (
            declared(cond_shape={"a": 2}),
            r"cond_shape\['a'\] = 2 must be positive integers, or None .*did you mean \(2,\)",
        ),
        (declared(cond_shape={"a": (0,)}), r"cond_shape\['a'\] = \(0,\) must be positive"),
        (declared(cond_shape={"a": (True,)}), "must be positive"),
        (declared(cond_shape={"a": None}), r"cond_shape\['a'\] = None must be positive"),
        (declared(cond_shape=(), classes=0), r"cond_shape = \(\) must be positive"),
        (declared(null={}), r"null is a dict of nothing; it must be a dict by name, .* labels, tokens, mask, strength"),
        (declared(null={"token": torch.zeros(2)}), "null is a dict of 'token'; it must be"),
        (declared(null=torch.zeros(2)), r"null is \(2,\); it must be a dict by name"),
        (declared(null=4), r"null\['labels'\] = 4 must be a label, 0 \.\. 3"),
        (declared(null={"labels": True}), r"null\['labels'\] = True must be a label"),
        (declared(null={"labels": torch.tensor(3)}), r"null\['labels'\] has shape \(\); it must be a label"),
        (declared(null={"labels": 1}, classes=0), "null is a dict of 'labels'; it must be"),
        (declared(null=1, classes=0), "null is 1; it must be a dict"),
        (declared(null={"tokens": 0}), r"null\['tokens'\] is 0; it must be a tensor of cond_shape, \(None,\)"),
        (declared(null={"tokens": torch.zeros(2, 2)}), r"null\['tokens'\] is \(2, 2\); it must be"),
        (declared(null={"strength": torch.tensor(torch.nan)}), r"null\['strength'\] holds NaN or Inf"),
        (declared(null={"tokens": torch.eye(2).to_sparse()[0]}), r"null\['tokens'\] is sparse"),
        (lambda: fs.ScoreModel(lambda u, t: u, (D,), fs.VP(), cond_shape=SHAPES), "and function cannot be: wrap it"),
        (lambda: fs.JointModel(net, {"a": fs.Part((D,), fs.VP())}, 3, (2,)), "not both"),
        (lambda: guided(null={"token": torch.zeros(2)}), "guidance: null is a dict of 'token'"),
        (lambda: guided(null={}), "guidance: null is a dict of nothing"),
        (lambda: guided(null=torch.zeros(2)), r"guidance: null is \(2,\); it must be a dict"),
        (lambda: guided(null={"tokens": torch.zeros(2, requires_grad=True)}), r"null\['tokens'\] requires a gradient"),
        (lambda: guided(), r"says of none that its network was trained"),
        (lambda: guided(model=model(cond_shape={"a": ()}, null=None)), "must take the first one's condition"),
        (
            lambda: guided(null={"tokens": torch.tensor([0.5])}).run([0], **told([0])),
            r"null\['tokens'\] is torch.float32",
        ),
        (lambda: guided(null={"mask": torch.tensor([2])}).run([0], **told([0])), r"null\['mask'\] is torch.int64"),
    ],
)
def test_what_no_model_can_take_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def guided(**fields):
    return fs.Sampler(model(null=None), steps=1, batch=2, guidance=fs.Guidance(2.0, **fields))


def test_the_dicts_of_a_caller_stay_theirs_and_changing_them_changes_nothing():
    shapes, null, away, given = dict(SHAPES), dict(NULL), dict(NULL), cond()
    m = model(cond_shape=shapes, null=null)
    guidance = fs.Guidance(2.0, null=away)
    sampler = fs.Sampler(m, steps=2, batch=3, guidance=guidance)
    request = sampler.request(range(N), labels=1, cond=given)
    x = sampler.run(request)
    assert list(given) == list(SHAPES) and all(given[k] is not None for k in given)
    for mapping in (shapes, null, away, given):
        mapping["tokens"] = None
        del mapping["mask"]
    assert sampler.run(request).equal(x)
    assert m.cond_shape == SHAPES and set(m.null) == set(guidance.null) == set(NULL)
    assert fs.Sampler(m, steps=2, batch=3, guidance=guidance).run(range(N), labels=1, cond=cond()).equal(x)


def test_copies_and_other_processes_take_them():
    sampler = fs.Sampler(model(), steps=2, batch=3, guidance=fs.Guidance(2.0, null=NULL))
    x = sampler.run(range(N), **told())
    again, request = pickle.loads(pickle.dumps((sampler, sampler.request(range(N), **told()))))
    assert again.run(request).equal(x)


# Files


def test_a_shard_has_an_array_for_each_name():
    sampler = fs.Sampler(model(), steps=1, batch=3)
    request = sampler.request(range(N), **told())
    request.cond["strength"] = request.cond["strength"].bfloat16()  # which NumPy does not know
    job = job_of(sampler, request, shard=4)
    assert job.told_bytes == 16 + 8 + 5 * 8 + 5 + 4
    arrays = job.draw(1, lambda done: None).arrays
    assert {name: (x.dtype.str, x.shape) for name, x in arrays.items()} == {
        "samples": ("<f4", (3, D)), "ids": ("<i8", (3,)), "cond.mask": ("|b1", (3, 5)), "cond.strength": ("<f4", (3,)),
        "cond.tokens": ("<i8", (3, 5)), "labels": ("<i8", (3,)),
    }  # fmt: skip
    assert np.array_equal(arrays["cond.tokens"], cond()["tokens"][4:])
    for name in set(FORMATS) - {"adm-npz", "parquet"}:  # of images alone; needs pyarrow
        again = decode(encode(Shard(1, "run", arrays), name), name).arrays
        assert all(np.array_equal(x, again[k]) and x.dtype == again[k].dtype for k, x in arrays.items())
    with pytest.raises(ValueError, match=r"or cond\.<name>"):
        Shard(0, "run", {**arrays, "cond.a b": arrays["ids"]})


def test_a_run_is_another_one_with_any_other_condition():
    sampler = fs.Sampler(model(), steps=1)

    def digest(**changes):
        given = told()
        given["cond"] |= changes
        return Asked.of(sampler.request(range(N), **given)).told

    base = digest()
    assert base == digest()
    tokens = cond()["tokens"]
    others = [digest(tokens=v) for v in (tokens + 1, tokens.int(), tokens[:, :4])] + [digest(mask=cond()["mask"][0])]
    assert len({base, *others}) == 5
    assert not any(k.startswith("cond") for k in conditions(fs.Sampler(fs.load_model("fashion")).request([0])))


def test_a_folder_does_not_lose_a_condition(tmp_path):
    m = replace(fs.load_model("fashion"), cond_shape={"a": (1,)}, null=None)
    with pytest.raises(ValueError, match="a model folder holds networks of classes"):
        save_model(tmp_path, m.net, {}, m, torch.float32)


# Networks


def test_what_a_condition_makes_of_each_network_path():
    module = build({"name": "MLP", "dim": D, "width": 8, "depth": 1, "classes": 0})
    m = fs.ScoreModel(module, (D,), fs.VP(), cond_shape={"tokens": (None,)})
    for network in ("compile", "regional"):
        with pytest.raises(ValueError, match=f"network = '{network}' compiles for one shape, .* network='own'"):
            prepare(m, network=network)
    said: list[str] = []
    for network in ("auto", "own", "fp32", "bf16"):
        assert prepare(m, network=network, say=said.append) is m
    assert [re.sub(" does.*", "", line) for line in said] == [
        f"the network runs as it is: {kind}" for kind in ("fp32", "bf16")
    ]
    with pytest.raises(ValueError, match="cond lacks tokens"):
        choose_batch(m, sizes=(2,), threads=(1,))
    assert choose_batch(model(null={**NULL, "strength": torch.tensor(1.0)}), sizes=(2,), threads=(1,)).batch == 2


class Told(torch.nn.Module):
    """A network of one kind of block, of tokens and a class."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(Block() for _ in range(2))

    def forward(self, u, t, cond):
        told = (TABLE[cond["tokens"]] * cond["mask"][..., None]).sum(1) + TABLE[cond["labels"]]
        for block in self.blocks:
            u = block(u + told)
        return u


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(D, D)

    def forward(self, u):
        return torch.tanh(self.linear(u))


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("network", ["compile", "regional"])
def test_compiled_networks_take_named_tensors_of_a_known_length(network):
    torch.manual_seed(0)
    shapes = {"tokens": (5,), "mask": (5,)}
    m = fs.ScoreModel(Told(), (D,), fs.VP(), fs.Parametrization("v"), 3, cond_shape=shapes, null={"labels": 3})
    given = told()
    del given["cond"]["strength"]
    own, other = (
        fs.Sampler(m, steps=3, batch=4, guidance=fs.Guidance(2.0), network=path).run(range(N), **given)
        for path in ("own", network)
    )
    assert torch.allclose(own, other, atol=1e-5)


def test_chains_at_a_level_take_them(seen):
    score = chains.level_score(model(), 0.5, 1, {"strength": torch.tensor(0.5)})
    assert score(torch.zeros(3, D)).shape == (3, D)
    assert firsts(seen) == [[1, [9, 9], [True, False], 0.5]]
    with pytest.raises(ValueError, match="cond lacks strength"):
        chains.level_score(model(), 0.5, 1)
    with pytest.raises(ValueError, match="label is missing"):
        chains.level_score(model(null={"tokens": torch.zeros(2)}), 0.5, cond=cond())
