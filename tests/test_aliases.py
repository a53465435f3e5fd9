"""Old paths and names keep working for one version, and name the new ones."""

from __future__ import annotations

import subprocess
import sys
import warnings
from importlib import import_module

import pytest

import fastscore
from fastscore import _aliases

PROMISED = ("analytic", "matrix", "mcmc", "operators", "likelihood", "grid", "schedule", "beta")
OLD_NAMES = {
    "analytic": "mixture gaussian score_model GaussianMixture",
    "grid": "karras uniform Times Span edm",
    "likelihood": "ProbabilityFlow dequantize",
    "matrix": "Diagonal LowRank Dense whitened",
    "mcmc": "run Chains",
    "operators": "Matrix Masked Blur",
    "schedule": "VP SubVP VE EDM Flow Pair Schedule Array lam t_of_lam diffuse",
    "beta": "LinearBeta CosineBeta Array",
    "tables": "DiscreteVP ddpm smld",
    "sinks": "Writer write_png contact_sheet",
}


@pytest.mark.parametrize("old", _aliases.MODULES)
def test_an_old_module_gives_the_new_ones_and_says_so(old):
    sys.modules.pop(f"fastscore.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"fastscore.{old} is now fastscore"):
        module = import_module(f"fastscore.{old}")
    for name in OLD_NAMES.get(old, "").split():
        assert hasattr(module, name), name
    first = import_module(f"fastscore.{_aliases.MODULES[old][0]}")
    public = [name for name in vars(first) if not name.startswith("_")]
    assert all(getattr(module, name) is getattr(first, name) for name in public)


def test_every_promised_path_is_there():
    assert set(PROMISED) <= set(_aliases.MODULES)
    assert not set(fastscore.__all__) & set(_aliases.MODULES)  # importing the old path would hide the name
    for package in ("plan", "solvers"):  # still at their place
        assert import_module(f"fastscore.{package}")
    from fastscore.plan import Plan, Row, Solver, clip, fold, lower, make_plan, validate

    assert all((Plan, Row, Solver, clip, fold, lower, make_plan, validate))


@pytest.mark.parametrize("old", _aliases.NAMES)
def test_an_old_name_is_the_new_one(old):
    with pytest.warns(DeprecationWarning, match=f"fastscore.{old} is now fastscore.{_aliases.NAMES[old][1]}"):
        assert getattr(fastscore, old) is getattr(fastscore, _aliases.NAMES[old][1])
    assert old not in fastscore.__all__


def test_an_old_module_is_an_attribute_too_and_a_wrong_name_is_none():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert fastscore.mcmc.run is import_module("fastscore.chains").run
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        assert fastscore.nothing
    with pytest.raises(ModuleNotFoundError):
        import_module("fastscore.nothing")


@pytest.mark.slow
def test_nothing_of_ours_uses_an_old_path():
    code = "import warnings; warnings.simplefilter('error', DeprecationWarning)\nimport fastscore as fs\nfs.Sampler"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
