"""The work-precision study: its metric, its records and what it recommends."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from bench import records
from bench.studies import precision_settings as settings
from bench.studies import precision_tables as tables
from bench.studies import work_precision as study
from fastscore.ops.noise import NoiseKey
from fastscore.solvers import names


def test_the_metric_of_a_shift_is_its_mean_projection():
    x = NoiseKey.of(0, range(500)).normal(0, 3, torch.float64)
    shift = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    directions = NoiseKey.of(2, range(4000)).normal(0, 3, torch.float64)
    directions /= directions.norm(dim=1, keepdim=True)
    expected = math.sqrt(float((directions @ shift).square().mean()))
    assert math.isclose(study.sliced_wasserstein(x, x + shift, 4000), expected, rel_tol=1e-12)
    assert study.sliced_wasserstein(x, x.flip(0)) == 0.0


def test_the_truth_has_every_component_in_its_share():
    mixture = study.target()
    x = study.truth_of(mixture, 2100).double()
    nearest = torch.cdist(x, mixture.means).argmin(1).bincount(minlength=6)
    assert torch.allclose(nearest.double() / 2100, mixture.weights, atol=0.01)


def test_a_cell_has_the_most_steps_that_its_budget_allows():
    model = study.score_model(study.target())
    for name, nfe in (("ddim", 10), ("heun", 9), ("dpmpp-2s", 9), ("rk4", 9)):
        sampler = study.Cell("mixture", name, "karras levels", 10).sampler(model, 4)
        assert sampler is not None and sampler.plan.nfe == nfe, name
    assert study.Cell("mixture", "implicit-midpoint", "karras levels", 3).sampler(model, 4) is None


@pytest.mark.slow
def test_a_study_goes_on_where_it_stopped_and_recommends_the_least_error(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "RECORDS", tmp_path / "r.jsonl")
    monkeypatch.setattr(tables, "FIGURE", tmp_path / "f.png")
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    monkeypatch.setattr(settings, "BUDGETS", (5, 10))
    monkeypatch.setattr(settings, "TOLERANCES", (0.1,))
    solvers = {name: settings.SOLVERS[name] for name in ("ddim", "dpmpp-2m")}
    monkeypatch.setattr(settings, "SOLVERS", solvers)
    monkeypatch.setattr(settings, "FAMILIES", {"ODE": solvers})
    errors = {"ddim": 2.0, "dpmpp-2m": 1.0}

    def images():
        for budget in settings.BUDGETS:
            for name in solvers:
                yield (
                    study.Cell("images", name, "default", budget),
                    lambda name=name, budget=budget: {
                        "nfe": budget,
                        "error": errors[name] if budget > 5 else 3.0 - errors[name],
                    },
                )

    study.study(study.mixture_cells(64), 64)
    study.study((cell for cell in study.adaptive_cells(64) if cell[0].solver == "bs32"), 64)
    study.study(images(), 64)
    lines = (tmp_path / "r.jsonl").read_text()
    assert len(lines.splitlines()) == 2 * 2 * 3 + 1 + 4
    study.study(study.mixture_cells(64), 64)
    assert (tmp_path / "r.jsonl").read_text() == lines
    assert tables.recommended(study.load()) == {5: "ddim", 10: "dpmpp-2m"}
    study.report()
    text = (tmp_path / "work_precision.md").read_text()
    assert "ddim at 5, dpmpp-2m at 10" in text and (tmp_path / "f.png").stat().st_size > 1000
    rows = tables.best(study.load(), "mixture")
    assert rows["dpmpp-2m"][10]["error"] < rows["ddim"][5]["error"]


def test_the_default_solver_is_what_the_records_recommend():
    """Or the README names what is better with so many evaluations."""
    found = tables.recommended(study.load())
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert names.DEFAULT in found.values()
    for name in {*found.values()} - {names.DEFAULT}:
        assert f"`{name}` with {min(k for k, one in found.items() if one == name)}" in readme
