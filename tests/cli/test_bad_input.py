"""Bad input: one message that names the value, exit code 2, nothing written."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

BAD = {
    "no such model": ("sample nothing --out {out}", "bundled model"),
    "no such analytic model": ("sample analytic:x --out {out}", "must be one of gaussian"),
    "steps zero": ("sample analytic:gaussian --steps 0 --out {out}", "0 is outside 1 .. 1000000"),
    "steps text": ("sample analytic:gaussian --steps many --out {out}", "'many' is not a whole number"),
    "fraction": ("sample analytic:gaussian -n 1.5 --out {out}", "not a whole number"),
    "negative": ("sample analytic:gaussian -n -3 --out {out}", "-3"),
    "solver": (
        "sample analytic:gaussian --solver ddimm --out {out}",
        "solver = 'ddimm' is nobody's name (nearest: ddim",
    ),
    "option": ("sample analytic:gaussian --step 5 --out {out}", "No such option"),
    "no out": ("sample analytic:gaussian", "--out"),
    "both": ("sample analytic:gaussian -n 4 --ids 1 --out {out}", "exclude each other"),
    "ids": ("sample analytic:gaussian --ids 5-3 --out {out}", "'5-3' is not an id or a rising range"),
    "twice": ("sample analytic:gaussian --ids 1,1 --out {out}", "twice"),
    "class": ("sample analytic:gaussian --class 3 --out {out}", "unconditional"),
    "eta": (
        "sample analytic:gaussian --solver heun --eta 1 --out {out}",
        "leave it out with solver heun",
    ),
    "eta range": ("sample analytic:gaussian --solver ddim --eta 2 --out {out}", "eta = 2.0 must lie in 0 .. 1"),
    "snr": ("sample analytic:gaussian --snr 0 --out {out}", "above 0"),
    "nan": ("sample analytic:gaussian --t-end nan --out {out}", "nan"),
    "sigma": ("sample analytic:gaussian --schedule vp --sigma-max 3 --out {out}", "sigma_max belongs to"),
    "sigma order": ("sample analytic:gaussian --schedule ve --sigma-max 0.001 --out {out}", "sigma_min"),
    "times": ("sample analytic:gaussian --t-start 0.1 --t-end 0.5 --out {out}", "must decrease"),
    "device": ("sample analytic:gaussian --device tpu --out {out}", "device = 'tpu' must be auto, cpu, cuda"),
    "no gpu": ("sample analytic:gaussian --device cuda:7 --out {out}", "CUDA devices; use device auto or cpu"),
    "subdirs alone": ("sample analytic:gaussian --subdirs --out {out}", "add png"),
    "rho unused": (
        "sample analytic:gaussian --grid uniform --rho 5 --out {out}",
        "rho = 5 belongs to the spacings karras and arctan",
    ),
    "png of points": ("sample analytic:gaussian --png --out {out}", "not images"),
    "score-sde": (
        "sample analytic:gaussian --solver score-sde --schedule vp --steps 10 --out {out}",
        "needs more than",
    ),
    "singular": (
        "sample analytic:gaussian --grid karras --schedule flow --steps 5 --out {out}",
        "move start (or end) off the end",
    ),
    "table": ("sample analytic:gaussian --schedule ddpm --grid trailing --steps 2000 --out {out}", "1 .. 1000"),
    "plan": ("plan --solver none", "needs a corrector"),
    "command": ("sampel", "No such command"),
    "data": ("train nothing --out {out}", "neither a known set"),
    "evaluate": ("evaluate {out}", "neither a known set"),
    "num": ("sample analytic:gaussian -n 3000G --out {out}", "outside 0 .. 1000000000000"),
    "unused": ("sample analytic:gaussian --snr 3 --out {out}", "snr belongs to the correctors"),
    "unused norm": ("plan --norm batch", "norm belongs to"),
    "huge snr": ("plan --corrector ald --snr 1e200", "at most 1000"),
    "adaptive steps": (
        "sample analytic:gaussian --solver dopri5 --steps 9 --out {out}",
        "steps = 9 belongs to solvers with a grid",
    ),
    "adaptive grid": (
        "sample analytic:gaussian --solver ggf --grid karras --out {out}",
        "grid spacing = karras belongs to",
    ),
    "adaptive plan": ("plan --solver bs32", "no table to print"),
    "tolerance": ("sample analytic:gaussian --rtol 1e-3 --out {out}", "rtol belongs to the solvers dopri5, bs32"),
    "tolerance zero": ("sample analytic:gaussian --solver dpm12 --atol 0 --out {out}", "above 0"),
    "likelihood shape": ("likelihood fashion moons", "holds examples of shape (2,), fashion makes (1, 28, 28)"),
    "likelihood data": ("likelihood analytic:moons nothing", "neither a known set"),
    "likelihood steps": ("likelihood analytic:moons moons --steps 5", "steps = 5 belongs to solvers with a grid"),
    "likelihood grid": ("likelihood analytic:moons moons --grid beta", "grid spacing = beta belongs to solvers with a"),
    "likelihood rtol": ("likelihood analytic:moons moons --solver rk4 --rtol 1e-3", "rtol belongs to"),
    "likelihood probes": ("likelihood analytic:moons moons --limit 3 --probes 4", "be 1 where the divergence is exact"),
    "likelihood end": ("likelihood analytic:moons moons --t-end 2", "must decrease"),
    "seed": ("sample analytic:gaussian --seed 18446744073709551616 --out {out}", "outside 0 .. 18446744073709551615"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_in_few_lines_with_exit_code_2(run, tmp_path, name):
    line, message = BAD[name]
    out = tmp_path / "out"
    code, _, error = run(*line.format(out=out).split())
    assert code == 2
    assert message in error
    assert len(error.strip().splitlines()) <= 5
    assert "Traceback" not in error
    assert not out.exists()


TOKENS = st.one_of(
    st.sampled_from(
        "-n --ids --steps --solver --schedule --eta --snr --rho --clip --t-end --batch --seed --grid".split()
    ),
    st.sampled_from("0 -1 1e9 1e400 nan inf 64 0.5 vp ve em heun karras leading ,, 3- é \x00 --".split(" ")),
    st.text(max_size=12),
)


@given(tokens=st.lists(TOKENS, max_size=6))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_arguments_end_in_a_message_or_a_plan(run, tokens):
    """`plan` shares its options with `sample`, and draws nothing."""
    tokens = ["3" if t == "1e9" else t for t in tokens]
    code, _, error = run("plan", *tokens)
    assert code in (0, 2)
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) <= 5


def test_a_broken_model_folder_is_named(run, tmp_path):
    model, out = tmp_path / "m", tmp_path / "out"
    model.mkdir()
    for text, message in (
        ("{", "not readable JSON"),
        ("[]", '"format": 1'),
        ('{"format": 2}', '"format": 1'),
        ('{"format": 1}', "missing or malformed"),
        ('{"format": 1, "net": {"name": "UNet"}}', "missing or malformed"),
        ('{"format": 1, "net": {"name": "GAN"}}', "missing or malformed"),
    ):
        (model / "config.json").write_text(text)
        code, _, error = run("sample", str(model), "--out", str(out))
        assert code == 2, text
        assert message in error
