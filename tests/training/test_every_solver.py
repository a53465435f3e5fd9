"""Every solver with its defaults on networks that `fastscore train` made with its own, on schedules of every kind."""

from __future__ import annotations

import math

import numpy as np
import pytest

import fastscore as fs
from bench.studies.training_matrix import exact, examples, judge
from fastscore.cli import main
from fastscore.process.names import SCHEDULES
from fastscore.solvers.names import ADAPTIVE, SOLVERS

pytestmark = [pytest.mark.slow, pytest.mark.nightly]

N, LEVELS = 4096, 10  # samples; levels of the table that `--schedule smld` makes
# A published loop, defined for these and for the tables of NCSN; noise whose default is one of a flow's time.
OWN = {"score-sde": ("vp", "subvp", "ve"), "dance": ("flow",)}
# Of a first-order step in t or of noise, 1 / steps of the result at most; of the others a tenth of that.
FIRST = ("ddim", "euler", "euler-cfg-pp", "euler-ancestral-cfg-pp", "dpm-1", "ddpm", "ancestral", "em", "milstein",
         "reverse-diffusion", "heun-sde", "score-sde", "edm-churn", "dpmpp-sde", "dpm-2-ancestral",
         "dpmpp-2s-ancestral", "euler-ancestral-rf", "dpm-2-ancestral-rf", "dpmpp-2s-ancestral-rf", "ggf",
         "dpm12")  # fmt: skip
# For networks whose estimate is a sample, with steps that are longer by intent, or with a share of noise or an
# estimate, as published, that is of no step of the model's own: not its marginals, in however many steps.
OTHERS = ("lcm", "consistency", "pingpong", "tcd", "af3", "cps", "dpmpp-2s-ancestral-cfg-pp", "cfgpp-ud10-ab")


@pytest.fixture(scope="module", params=[name for name in SCHEDULES if name != "smld"])
def trained(request, tmp_path_factory):
    return request.param, train(request.param, tmp_path_factory.mktemp(request.param))


def train(schedule, folder):
    np.save(folder / "x.npy", examples("four", 100_000, 0))
    options = ["--schedule", schedule, "--images", "150000", "--no-compile", "--quiet"]
    with pytest.raises(SystemExit) as end:
        main(["train", str(folder / "x.npy"), "--out", str(folder / "model"), *options])
    assert not end.value.code
    return fs.load_model(folder / "model")


def found(sampler):
    """Distance to the nearest mode over the data's, standard deviation over the data's, largest error of a share."""
    x = sampler.run(range(N), 1).numpy()
    distance, shares = judge("four", x)
    return distance / exact("four")[0], x.std() / math.sqrt(4.25), max(abs(share - 0.25) for share in shares)


def test_defaults(trained):
    """With 100 steps, or the tolerance of its own: as wide as the data, at its modes, with its shares."""
    name, model = trained
    wrong = {}
    for solver in SOLVERS:
        if solver in ("none", *OTHERS) or name not in OWN.get(solver, (name,)):
            continue
        steps = {} if solver in ADAPTIVE else {"steps": 100}
        distance, std, gap = found(fs.Sampler(model, solver=solver, batch=2048, **steps))
        print(f"{name} {solver}: distance {distance:.3f}, std {std:.3f}, gap {gap:.3f}")
        close = 0.06 if solver in FIRST else 0.02
        # Four standard errors of a share, and what 150,000 examples leave of a network's own.
        if abs(distance - 1.0) > 0.1 or abs(std - 1.0) > close or gap > 0.06:
            wrong[solver] = (distance, std, gap)
    assert not wrong


def test_annealed_langevin_of_a_table(tmp_path):
    """NCSN reads every level alike: trained around the data alone its samples were .82 as wide as they are."""
    model = train("smld", tmp_path)
    levels = model.schedule.sigmas
    assert len(levels) == LEVELS
    distance, std, gap = found(fs.Sampler(model, **fs.ncsn(LEVELS, levels[-1], levels[0]), batch=2048))
    print(f"ncsn: distance {distance:.3f}, std {std:.3f}, gap {gap:.3f}")
    assert abs(std - 1.0) < 0.06
    assert 0.95 < distance < 1.3  # every step leaves noise of its own
    for solver in ("dpm-3", "dpmpp-3s", "unipc", "pndm", "dopri5", "bs32", "dpm23"):
        distance, std, gap = found(fs.Sampler(model, solver=solver, batch=2048))
        assert abs(distance - 1.0) < 0.15, solver
        assert abs(std - 1.0) < 0.03, solver
        assert gap < 0.04, solver
