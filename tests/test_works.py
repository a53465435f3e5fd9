"""What works with what, cell by cell: a feature has its effect, in any company, or is refused by name."""

from __future__ import annotations

import pytest
import torch
from works import COLUMNS, PAGE, attempt, features, page, run, without

NO_EFFECT = ("callback",)
REFUSALS = {
    ("guidance by CFG++", "adaptive ODE"): "CFG++",
    ("guidance by CFG++", "adaptive SDE"): "CFG++",
    ("rules of guidance (APG, ..)", "joint"): "guide",
    ("rules with momentum", "Picard"): "momentum",
    ("rules with momentum", "adaptive ODE"): "momentum",
    ("rules with momentum", "adaptive SDE"): "momentum",
    ("rules with momentum", "joint"): "guide",
    ("guides (DPS, PiGDM, ..)", "joint"): "guide",
    ("known data", "adaptive SDE"): "known",
    ("known data", "joint"): "known",
    ("recorded noise", "Picard"): "recorded noise",
    ("recorded noise", "adaptive SDE"): "noise",
    ("callback", "Picard"): "callback",
    ("callback", "adaptive ODE"): "callback",
    ("callback", "adaptive SDE"): "callback",
    ("callback", "joint"): "callback",
    ("rules with momentum", "Engine"): "momentum",
    ("recorded noise", "Engine"): "noise",
    ("callback", "Engine"): "callback",
}


@pytest.mark.thirds
@pytest.mark.parametrize("column", COLUMNS)
def test_every_feature_has_its_effect_or_is_refused_by_name(column):
    for feature in features():
        result, reason = attempt(feature, column)
        if result is None:
            assert REFUSALS.get((feature, column), "no refusal is expected") in reason, (feature, reason)
            continue
        assert (feature, column) not in REFUSALS, f"{feature} with {column} works now: say so"
        assert result.isfinite().all()
        assert torch.equal(result, without(feature, column)) == (feature in NO_EFFECT), feature
        assert torch.equal(attempt(feature, column, batch=3)[0], result), feature


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.filterwarnings("ignore:Langevin with per-sample norms")
def test_one_seed_a_sample(column):
    ids, seeds = (4, 0, 9), [5, 2**64 - 1, 5]
    mixed = run(column, {}, {}, {}, ids=ids, seed=seeds)
    alone = [run(column, {}, {}, {}, ids=(k,), seed=seed) for k, seed in zip(ids, seeds, strict=True)]
    assert torch.equal(mixed, torch.cat(alone))


def test_an_engine_draws_what_a_plan_alone_draws():
    for feature in features():
        if (feature, "Engine") not in REFUSALS:
            assert torch.equal(attempt(feature, "Engine")[0], attempt(feature, "plan")[0]), feature


def test_the_readme_shows_it():
    assert PAGE.read_text() == page()
