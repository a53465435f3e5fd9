"""What the oracles run on: schedules beside the papers' own formulas, solvers beside their textbook loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import textbook
import textbook_exponential as fast
import textbook_few as few
import textbook_flow_sde as flow_sde
import textbook_rows as rows
from textbook import Process

from fastscore.process.beta import CosineBeta, ExponentialBeta
from fastscore.process.continuous import EDM, VE, VP, Flow, Pair, SubVP, TutorialVE
from fastscore.process.discrete import discrete_vp, smld
from fastscore.solvers import (
    CPS,
    DDIM,
    DDPM,
    DEIS,
    ERSDE,
    IPNDM,
    LMS,
    PNDM,
    RK2,
    RK4,
    SEEDS,
    AlphaFold3,
    Ancestral,
    AncestralSplit,
    AnnealedLangevin,
    Churn,
    DanceSDE,
    DPMFast,
    DPMMultistep,
    DPMpp2M,
    DPMSolver,
    Euler,
    EulerMaruyama,
    FlowSDE,
    GradientEstimation,
    Heun,
    HeunPP,
    Hybrid,
    ImplicitMidpoint,
    InSigma,
    Interval,
    Langevin,
    PredictorCorrector,
    Renoise,
    RePaint,
    Restart,
    ReverseDiffusion,
    SASolver,
    ScoreSDE,
    StochasticHeun,
    UniPC,
    Window,
)

# --- schedules: fastscore's beside the papers' ------------------------------------------------


@dataclass(frozen=True)
class Setting:
    schedule: object
    process: Process
    knots: tuple[float, ...]  # the last is the clean end
    prior: float = 1.0  # standard deviation of x at the first knot


def _bend(start: float, end: float, clean: float, n: int = 5) -> tuple[float, ...]:
    """Knots of uneven width, so that a formula cannot be right for even ones only."""
    inner = start + (end - start) * (np.arange(n + 1) / n) ** 1.2
    return (*inner.tolist(), clean)


def _linear() -> tuple:
    return lambda t: 0.1 + 19.9 * t, lambda t: 0.1 * t + 9.95 * t**2


def _cosine() -> tuple:
    rate = 0.5 * math.pi / 1.008
    return (
        lambda t: 2.0 * rate * np.tan(rate * (t + 0.008)),
        lambda t: 2.0 * np.log(np.cos(rate * 0.008) / np.cos(rate * (t + 0.008))),
    )


def _exponential() -> tuple:
    rate = math.log(200.0)
    return lambda t: 0.1 * 200.0**t, lambda t: 0.1 * (200.0**t - 1.0) / rate


def _settings() -> dict[str, Setting]:
    log25 = math.log(25.0)
    betas, sigmas = np.linspace(0.02, 0.3, 8), np.geomspace(0.02, 3.0, 8)
    flow = Process(lambda t: 1.0 - t, lambda t: t, lambda t: -1.0 / (1.0 - t), lambda t: 2.0 * t / (1.0 - t))
    # x_t = (x_0 + t z) / (1 + t): the noise of EDM in a state that shrinks.
    pair = Process(
        lambda t: 1.0 / (1.0 + t),
        lambda t: t / (1.0 + t),
        lambda t: -1.0 / (1.0 + t),
        lambda t: 2.0 * t / (1.0 + t) ** 2,
    )
    return {
        "vp-linear": Setting(VP(), textbook.vp(*_linear()), _bend(1.0, 0.03, 0.0)),
        "vp-cosine": Setting(VP(CosineBeta()), textbook.vp(*_cosine()), _bend(0.9946, 0.05, 0.0)),
        "vp-exponential": Setting(VP(ExponentialBeta()), textbook.vp(*_exponential()), _bend(1.0, 0.05, 0.0)),
        "subvp": Setting(SubVP(), textbook.subvp(*_linear()), _bend(1.0, 0.1, 0.0)),
        "ve": Setting(
            VE(),
            textbook.ve(lambda t: 0.01 * 5000.0**t, lambda t: 2e-4 * math.log(5000.0) * 5000.0 ** (2 * t)),
            _bend(1.0, 0.1, -math.inf),
            50.0,
        ),
        "tutorial-ve": Setting(
            TutorialVE(),
            textbook.ve(lambda t: np.sqrt((25.0 ** (2 * t) - 1.0) / (2.0 * log25)), lambda t: 25.0 ** (2 * t)),
            _bend(1.0, 0.05, 0.0),
            math.sqrt(624.0 / (2.0 * log25)),
        ),
        "edm": Setting(EDM(), textbook.ve(lambda t: t, lambda t: 2.0 * t), (80.0, 30.0, 8.0, 2.0, 0.5, 0.1, 0.0), 80.0),
        "flow": Setting(Flow(), flow, _bend(0.95, 0.05, 0.0), math.hypot(0.05, 0.95)),
        "flow-from-noise": Setting(Flow(), flow, _bend(1.0, 0.05, 0.0)),
        "ddpm-table": Setting(
            discrete_vp("linear", 8, 0.02, 0.3), textbook.ddpm_table(betas), tuple(np.arange(7.0, -2.0, -1.0))
        ),
        "smld-table": Setting(smld(8, 0.02, 3.0), textbook.smld_table(sigmas), tuple(np.arange(7.0, -2.0, -1.0)), 3.0),
        "pair": Setting(
            Pair(lambda t: 1.0 / (1.0 + t), lambda t: t / (1.0 + t), T=20.0),
            pair,
            (20.0, 9.0, 4.0, 1.5, 0.5, 0.1, 0.0),
            20.0 / 21.0,
        ),
    }


SETTINGS = _settings()
# f is infinite at pure noise, so only exponential integrators start there.
FINITE = tuple(name for name in SETTINGS if name != "flow-from-noise")
VARIANCE_PRESERVING = tuple(name for name in SETTINGS if SETTINGS[name].process.kind == "vp")
PUBLISHED = ("vp-linear", "subvp", "ve")
SPANNED = ("vp-linear", "subvp", "ve", "edm")


# --- solvers beside their textbook loops ------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A solver, its textbook loop and what it promises."""

    solver: object
    loop: Callable
    schedules: tuple[str, ...] = FINITE
    # "exponential": linear part exact; "sde", "ode": consistent to the declared order; "keep-eps", "pc", "published",
    # "noise": none of these
    family: str = "sde"
    keeps_marginals: bool | None = False  # None: the SDE in eps, which does not
    exact_mean: tuple[str, ...] = ()  # schedules on which each step's mean is E[x_s | x_t], and so the mean is exact
    eta: float = 0.0  # noise of the SDE that it converges to, in units of Anderson's reverse SDE
    evaluations: tuple[int, int] = (1, 0)  # nfe = first x intervals + second, on a grid that ends at sigma > 0
    clean_evaluations: int = 0  # more of them on a grid with a clean end
    orders: tuple[int, int] | None = (
        None  # weak orders of mean and variance, where noise makes them other than declared
    )
    spans: tuple[str, ...] = SPANNED  # schedules on which the order is measured
    elsewhere: tuple[str, ...] = ()  # of these, between other times: an error coefficient is near 0 on the usual ones
    late: tuple[str, ...] = ()  # of these, with twice the steps: else the next term is large, or a wrong label small
    shrink: Callable | None = None  # of the mean's offset between two levels, where the SDE is not one of eta's family
    # Knots on which it is: "even", "bent" (uneven) or "short" (first steps too short for their low order to show)
    knots: str = "even"


def _pc(predictor: object, corrector: object, loop: Callable, correct: Callable, **options: object) -> Case:
    steps = corrector.corrections
    return Case(
        PredictorCorrector(predictor, corrector),
        partial(textbook.predictor_corrector, predictor=loop, corrector=correct),
        family="pc",
        evaluations=(1 + steps, 0),
        clean_evaluations=-steps,
        **options,
    )


def _ncsn(process: Process, D: Callable, t: np.ndarray, x: np.ndarray, z: object) -> np.ndarray:
    """NCSN's alpha_i is twice the step of the ald form: epsilon = 4 (snr sigma_L)^2, here with snr = 0.3."""
    sigmas = [process.sigma(v) for v in t if process.sigma(v) > 0.0]
    x = textbook.ncsn(process, D, sigmas, x, z, 4.0 * (0.3 * sigmas[-1]) ** 2, 2)
    return D(x, 1.0, sigmas[-1]) if process.sigma(t[-1]) == 0.0 else x


def _published(predictor: str, corrector: object = None, correct: Callable | None = None) -> Case:
    def loop(process: Process, D: Callable, t: np.ndarray, x: np.ndarray, z: object) -> np.ndarray:
        n = len(t) - 1
        table = np.linspace(0.1 / n, 20.0 / n, n) if process.kind == "vp" else np.geomspace(0.01, 50.0, n)
        return textbook.published(process, D, t, x, z, predictor, table, correct)

    at = ("vp-linear", "ve") if predictor == "ancestral_sampling" or corrector else PUBLISHED
    return Case(ScoreSDE(predictor, corrector), loop, at, "published", evaluations=(2 if corrector else 1, 0))


def _cases() -> dict[str, Case]:
    everywhere = tuple(SETTINGS)
    exponential = {"schedules": everywhere, "family": "exponential"}
    cases = {
        f"euler-maruyama-{eta:g}": Case(EulerMaruyama(eta), partial(textbook.euler_maruyama, eta=eta), eta=eta)
        for eta in (0.0, 0.5, 1.0)
    }
    cases |= {
        "reverse-diffusion": Case(
            ReverseDiffusion(), textbook.reverse_diffusion, exact_mean=("ve", "edm"), eta=1.0, late=SPANNED
        ),
        "reverse-diffusion-flow": Case(
            ReverseDiffusion(probability_flow=True),
            partial(textbook.reverse_diffusion, probability_flow=True),
            late=SPANNED,
        ),
        "ancestral-small": Case(Ancestral(), textbook.ancestral_ve, FINITE, "exponential", True, everywhere, 1.0),
        "ancestral-small-vp": Case(
            Ancestral(), textbook.ancestral_vp, VARIANCE_PRESERVING, "exponential", True, everywhere, 1.0
        ),
        "ancestral-large": Case(
            Ancestral("large"),
            partial(textbook.ancestral_vp, variance="large"),
            VARIANCE_PRESERVING,
            "exponential",
            False,
            everywhere,
            1.0,
        ),
        "ddim-0": Case(DDIM(), textbook.ddim, keeps_marginals=True, **exponential),
        "ddim-0.5": Case(DDIM(0.5), partial(textbook.ddim, eta=0.5), keeps_marginals=True, eta=0.5, **exponential),
        "ddim-1": Case(DDIM(1.0), partial(textbook.ddim, eta=1.0), everywhere, "exponential", True, everywhere, 1.0),
    }
    langevin = partial(textbook.langevin, snr=0.16, steps=2)
    bounded = partial(langevin, limit=1.0)
    ald = partial(textbook.ald, snr=0.2, steps=1)
    cases |= {
        "ddim-keep-eps": Case(
            DDIM(0.5, keep_eps=True), partial(textbook.ddim, eta=0.5), everywhere, "keep-eps", eta=0.5
        ),
        "euler": Case(Euler(), textbook.euler, family="ode"),
        "heun": Case(Heun(), textbook.heun, family="ode", evaluations=(2, 0), clean_evaluations=-1),
        "edm-heun": Case(Heun(), textbook.edm, ("edm",), "ode", evaluations=(2, 0), clean_evaluations=-1),
        "dpmpp-2m": Case(DPMpp2M(), textbook.dpmpp_2m, keeps_marginals=True, **exponential),
        # Algorithms 4 and 5 to the letter, where the bound on the step is not met ...
        "pc-langevin": replace(
            _pc(ReverseDiffusion(), Langevin(0.16, 2), textbook.reverse_diffusion, langevin),
            schedules=("vp-linear", "subvp", "tutorial-ve", "edm", "ddpm-table", "pair"),
        ),
        # ... and with the bound, which is ours: it is met where sigma is small against every scale of the data.
        "pc-langevin-bounded": _pc(DDIM(1.0), Langevin(), partial(textbook.ddim, eta=1.0), partial(bounded, steps=1)),
        "pc-langevin-batch": _pc(
            ReverseDiffusion(), Langevin(0.16, 2, "batch"), textbook.reverse_diffusion, partial(bounded, norm="batch")
        ),
        "pc-langevin-expected": _pc(
            ReverseDiffusion(),
            Langevin(0.16, 2, "expected"),
            textbook.reverse_diffusion,
            partial(bounded, norm="expected"),
        ),
        "pc-ald": _pc(EulerMaruyama(), AnnealedLangevin(0.2), textbook.euler_maruyama, ald),
        "ncsn": Case(
            PredictorCorrector(None, AnnealedLangevin(0.3, 2)),
            _ncsn,
            ("smld-table", "ve", "edm"),
            "pc",
            evaluations=(2, 2),
            clean_evaluations=-1,
        ),
        "score-sde-euler-maruyama": _published("euler_maruyama"),
        "score-sde-reverse-diffusion": _published("reverse_diffusion"),
        "score-sde-ancestral": _published("ancestral_sampling"),
        "score-sde-langevin": _published(
            "reverse_diffusion", Langevin(0.1, 1, "batch"), partial(textbook.langevin, snr=0.1, steps=1, norm="batch")
        ),
        "score-sde-ald": _published(
            "reverse_diffusion", AnnealedLangevin(0.1), partial(textbook.ald, snr=0.1, steps=1)
        ),
    }
    return cases | _stages() | _single() | _multistep() | _composed() | _rows() | _few() | _policies()


def _policies() -> dict[str, Case]:
    everywhere = {"schedules": tuple(SETTINGS), "family": "exponential", "keeps_marginals": True, "spans": ()}
    return {
        "flow-sde": Case(FlowSDE(0.7), partial(flow_sde.diffused, a=0.7), eta=0.7 / math.sqrt(2.0)),
        "dance": Case(DanceSDE(0.3), partial(flow_sde.diffused, a=0.3, constant=True), spans=()),
        "cps": Case(CPS(0.8), partial(flow_sde.cps, a=0.8), **everywhere),
        "window": Case(Window(DDIM(1.0), {0}), flow_sde.first_step_noisy, **everywhere),
    }


def _stages() -> dict[str, Case]:
    two = {"family": "ode", "evaluations": (2, 0), "clean_evaluations": -1}
    return {
        # On Gaussian data in EDM's time the midpoint rule's leading error is 0 by chance.
        "midpoint": Case(RK2(), textbook.rk2, spans=("vp-linear", "subvp", "ve"), **two),
        "ralston": Case(RK2(2 / 3), partial(textbook.rk2, a=2 / 3), SPANNED, **two),
        "rk4": Case(RK4(), textbook.rk4, family="ode", evaluations=(4, 0), clean_evaluations=-3),
        "implicit-midpoint": Case(
            ImplicitMidpoint(3),
            partial(textbook.implicit_midpoint, sweeps=3),
            family="ode",
            evaluations=(4, 0),
            clean_evaluations=-3,
        ),
        "stochastic-heun": Case(
            StochasticHeun(), textbook.stochastic_heun, eta=1.0, evaluations=(2, 0), clean_evaluations=-1
        ),
    }


def _steps(solver: object, step: Callable, n: int, schedules: tuple[str, ...] = SPANNED, **options: object) -> Case:
    return Case(
        solver,
        partial(fast.one_step, step=step),
        schedules,
        "exponential",
        options.pop("keeps_marginals", True),
        evaluations=(n, 0),
        clean_evaluations=1 - n,
        **options,
    )


def _single() -> dict[str, Case]:
    two, ancestral = DPMSolver(2), partial(fast.ancestral, step=fast.dpm_solver_2)
    return {
        "dpm-1": _steps(DPMSolver(1), fast.dpm_solver_1, 1),
        "dpm-2": _steps(two, fast.dpm_solver_2, 2, FINITE),
        "dpm-3": _steps(DPMSolver(3), fast.dpm_solver_3, 3, FINITE),
        "dpm-fast": Case(DPMFast(), fast.dpm_fast, FINITE, "exponential", True, spans=()),
        "dpmpp-2s": _steps(DPMSolver(2, "x0"), fast.dpmpp_2s, 2, FINITE),
        "dpmpp-3s": _steps(DPMSolver(3, "x0"), fast.dpmpp_3s, 3, FINITE),
        "dpmpp-2s-on-grid": Case(DPMSolver(2, "x0", on_grid=True), fast.dpmpp_2s_on_grid, SPANNED, "exponential", True),
        "dpmpp-sde": _steps(
            DPMSolver(2, "x0", 1.0), fast.dpmpp_sde, 2, FINITE, eta=1.0, exact_mean=FINITE, orders=(1, 1)
        ),
        "dpmpp-sde-0.5": _steps(
            DPMSolver(2, "x0", 0.5), partial(fast.dpmpp_sde, eta=0.5), 2, eta=0.5, orders=(2, 1), keeps_marginals=True
        ),
        # Not the cosine schedule, where a step down to sigma ~ 1e-5 loses digits of the integral of beta.
        "dpm-2-ancestral": _steps(
            AncestralSplit(two), ancestral, 2, (*SPANNED, "flow", "ddpm-table", "smld-table"), eta=1.0, orders=(1, 2)
        ),
        "dpm-2-ancestral-0.5": _steps(AncestralSplit(two, 0.5), partial(ancestral, eta=0.5), 2, spans=()),
        "dpmpp-2s-ancestral": _steps(
            AncestralSplit(DPMSolver(2, "x0")), partial(fast.ancestral, step=fast.dpmpp_2s), 2, eta=1.0, orders=(1, 2)
        ),
    }


def _multistep() -> dict[str, Case]:
    def paper(order: int, kind: str, eta: float = 0.0, at: tuple[str, ...] = SPANNED, **options: object) -> Case:
        solver, loop = (
            DPMMultistep(order, kind, "paper", eta),
            partial(fast.dpm_multistep, order=order, kind=kind, eta=eta),
        )
        keeps = None if eta and kind == "eps" else True
        return Case(solver, loop, at, "exponential", keeps, eta=eta, **options)

    def adams(solver: object, order: int, kind: str, at: tuple[str, ...] = SPANNED, **options: object) -> Case:
        if kind == "x0" and order > 2:
            solver = replace(solver, reach=math.inf)  # the papers' orders at every step
        loop = partial(fast.adams, order=order, kind=kind, eta=options.get("eta", 0.0))
        return Case(solver, loop, at, "exponential", True, **{"knots": "short", **options})

    def unipc(p: int, variant: str, kind: str = "x0", at: tuple[str, ...] = SPANNED, **options: object) -> Case:
        loop = partial(fast.unipc, p=p, variant=variant, kind=kind)
        return Case(UniPC(p, variant, kind, reach=math.inf), loop, at, "exponential", True, knots="short", **options)

    def sa(predictor: int, corrector: int, tau: float, at: tuple[str, ...] = SPANNED, **options: object) -> Case:
        loop = partial(fast.sa_solver, predictor=predictor, corrector=corrector, tau=tau)
        solver = SASolver(predictor, corrector, tau, reach=math.inf)
        return Case(solver, loop, at, "exponential", True, eta=tau, **{"knots": "short", **options})

    def pndm(solver: object, start: str, most: int = 4, **options: object) -> Case:
        loop = partial(fast.pndm, start=start, most=most)
        return Case(solver, loop, FINITE, "exponential", True, **options)

    noisy = {"exact_mean": FINITE, "orders": (2, 2), "knots": "even"}
    return {
        "dpm-2m": paper(2, "eps"),
        "dpmpp-3m-paper": paper(3, "x0", orders=(2, 2)),
        "dpmpp-1-sde": paper(1, "x0", 1.0, exact_mean=FINITE, orders=(1, 1)),
        "dpmpp-2m-sde": paper(2, "x0", 1.0, FINITE, **noisy),
        "dpmpp-3m-sde-paper": paper(3, "x0", 1.0, spans=()),
        "dpm-2m-sde": paper(2, "eps", 1.0, FINITE, orders=(2, 2)),
        "dpmpp-2m-heun": adams(DPMMultistep(2), 2, "x0", elsewhere=("vp-linear",)),
        "dpmpp-3m": adams(DPMMultistep(3), 3, "x0", FINITE, elsewhere=("subvp",), late=("edm",)),
        "dpm-3m": adams(DPMMultistep(3, "eps"), 3, "eps", elsewhere=("vp-linear",)),
        "dpmpp-3m-sde-0.5": adams(DPMMultistep(3, "x0", "exact", 0.5), 3, "x0", eta=0.5, spans=()),
        "dpm-3m-sde": replace(
            adams(DPMMultistep(3, "eps", "exact", 1.0), 3, "eps", eta=1.0, orders=(3, 2), spans=("vp-linear",)),
            late=("vp-linear",),
            keeps_marginals=None,
        ),
        "deis-2": adams(DEIS(2), 2, "eps"),
        "deis-4": adams(DPMMultistep(4, "eps", reach=math.inf), 4, "eps", FINITE, elsewhere=("subvp", "edm")),
        "deis-rho-3": adams(DEIS(3, "rho"), 3, "rho"),
        "lms": adams(LMS(), 4, "rho", FINITE, elsewhere=("edm",)),
        "unipc-1": unipc(1, "bh1"),
        "unipc-2": unipc(2, "bh2", late=("vp-linear", "edm")),
        "unipc-2-bh1": unipc(2, "bh1"),
        "unipc-2-vary": unipc(2, "vary", late=("vp-linear",)),
        "unipc-3": unipc(3, "bh2", at=FINITE, elsewhere=("subvp", "ve", "edm"), late=("subvp",)),
        "unipc-3-eps": unipc(3, "bh2", "eps", elsewhere=("subvp",)),
        "sa-ode": sa(3, 4, 0.0, elsewhere=("subvp", "ve", "edm"), late=("subvp",)),
        "sa-1-2-ode": sa(1, 2, 0.0),
        "sa": sa(3, 4, 1.0, FINITE, spans=()),
        "sa-predictor": sa(2, 0, 1.0, **noisy, elsewhere=("ve",)),
        "pndm": pndm(PNDM(), "prk", evaluations=(1, 9), knots="bent"),
        "plms": pndm(PNDM(prk=False), "plms", evaluations=(1, 1), knots="bent"),
        "ipndm": pndm(IPNDM(), "rising", knots="bent", elsewhere=("ve",)),
        "ipndm-2": pndm(IPNDM(2), "rising", 2, knots="bent"),
    }


def _switch(process: Process, D: Callable, t: np.ndarray, x: np.ndarray, z: object) -> np.ndarray:
    k = sum(v > 0.55 for v in t[:-1])
    x = textbook.ddim(process, D, t[: k + 1], x, z, eta=1.0) if k else x
    return textbook.dpmpp_2m(process, D, t[k:], x, z) if k < len(t) - 1 else x


def _composed() -> dict[str, Case]:
    churn = {"churn": 2.0, "low": 0.1, "high": 1.0, "noise": 1.0}
    levels = {"low": 0.4, "high": 1.6, "steps": 2}
    restart = Restart((Interval(0.4, 1.6, 2, 3),), DPMSolver(2))
    two = {"spans": (), "clean_evaluations": -1}
    return {
        "churn": Case(
            Churn(DPMSolver(2), **churn),
            partial(fast.churned, step=fast.dpm_solver_2, **churn),
            FINITE,
            "exponential",
            True,
            evaluations=(2, 0),
            **two,
        ),
        "churn-heun": Case(
            Churn(Heun(), **{**churn, "churn": 40.0, "noise": 1.003}),
            partial(fast.churned, step=fast.heun, **{**churn, "churn": 40.0, "noise": 1.003}),
            ("edm",),
            "noise",
            evaluations=(2, 0),
            **two,
        ),
        "restart": Case(
            restart,
            partial(fast.restart, step=fast.dpm_solver_2, times_=3, **levels),
            FINITE,
            "exponential",
            True,
            evaluations=(2, 12),
            **two,
        ),
        "repaint": Case(
            RePaint(DDPM(), 1, 2),
            partial(fast.repaint, jump=1, repeats=2),
            FINITE,
            "exponential",
            True,
            evaluations=(2, 0),
            **two,
        ),
        "hybrid": Case(Hybrid(DDIM(1.0), DPMpp2M(), 0.55), _switch, FINITE, "exponential", True, spans=()),
    }


def _rows() -> dict[str, Case]:
    def er_sde(order: int, scale: str, at: tuple[str, ...] = SPANNED, **options: object) -> Case:
        solver, taylor = ERSDE(order, scale), options.pop("taylor", False)
        loop = partial(rows.er_sde, order=order, scale=scale, taylor=taylor)
        solver = replace(solver, form="taylor") if taylor else solver
        return Case(solver, loop, at, "exponential", True, **{"knots": "short", **options})

    def seeds(solver: SEEDS, step: Callable, n: int, at: tuple[str, ...] = SPANNED, **options: object) -> Case:
        return _steps(solver, partial(step, eta=solver.eta), n, at, eta=solver.eta, **options)

    sde_5 = partial(rows.offset_of, "sde_5")

    def in_sigma(solver: object, loop: Callable, at: tuple[str, ...], **options: object) -> Case:
        loop = partial(rows.in_sigma, loop=loop)
        return Case(InSigma(solver), loop, at, "exponential", True, spans=(), **options)

    noisy = {"exact_mean": FINITE, "orders": (2, 2)}
    tab = {"family": "exponential", "keeps_marginals": True}
    return {
        "er-sde": er_sde(3, "sde_5", FINITE, spans=()),
        "er-sde-2": er_sde(2, "sde_5", shrink=sde_5),
        "er-sde-1": er_sde(1, "sde", eta=1.0, exact_mean=FINITE, orders=(1, 1), knots="even"),
        "er-sde-ode": er_sde(3, "ode", late=SPANNED),
        "er-sde-sde": er_sde(2, "sde", eta=1.0, **noisy),
        "er-sde-taylor": er_sde(3, "sde_2", taylor=True, eta=math.sqrt(0.5), orders=(2, 2)),
        "er-sde-others-1": er_sde(3, "sde_1", spans=()),
        "er-sde-others-3": er_sde(3, "sde_3", spans=()),
        "er-sde-others-4": er_sde(3, "sde_4", spans=()),
        "seeds-2": seeds(SEEDS(), rows.seeds_2, 2, FINITE, **noisy),
        "seeds-2-0.5": seeds(SEEDS(2, 0.5, 0.3, "phi_2"), partial(rows.seeds_2, r=0.3, exact=True), 2, orders=(2, 2)),
        "seeds-3": seeds(SEEDS(3), rows.seeds_3, 3, FINITE, **{**noisy, "spans": ()}),
        "seeds-3-ode": seeds(SEEDS(3, 0.0), rows.seeds_3, 3),
        "exp-heun": seeds(SEEDS(2, 1.0, 1.0, "phi_2"), partial(rows.seeds_2, r=1.0, exact=True), 2, FINITE, **noisy),
        "res-2s": _steps(SEEDS(2, 0.0, 0.5, "phi_2"), partial(rows.res_2s, c2=0.5), 2, FINITE),
        "res-ancestral": Case(
            DPMMultistep(2, "x0", "exact", 1.0, noise="split"),
            partial(rows.res_multistep, eta=1.0),
            FINITE,
            eta=1.0,
            **tab,
            **noisy,
            elsewhere=("ve",),
        ),
        "res-ancestral-0.5": Case(
            DPMMultistep(2, "x0", "exact", 0.5, noise="split"),
            partial(rows.res_multistep, eta=0.5),
            SPANNED,
            eta=0.5,
            orders=(1, 2),
            **tab,
            elsewhere=("vp-linear", "ve"),
        ),
        "gradient-estimation": Case(
            GradientEstimation(), partial(rows.gradient_estimation, gamma=2.0), FINITE, **tab, late=SPANNED
        ),
        "heunpp2": Case(HeunPP(), rows.heun_plus_plus, FINITE, **tab, evaluations=(3, -3), elsewhere=("ve",)),
        "dpmpp-2m-in-sigma": in_sigma(DPMpp2M(), textbook.dpmpp_2m, ("flow-from-noise", "flow", "vp-linear")),
        "lms-in-sigma": in_sigma(LMS(), partial(fast.adams, order=4, kind="rho"), ("flow", "edm")),
        "heunpp2-in-sigma": in_sigma(HeunPP(), rows.heun_plus_plus, ("flow",), evaluations=(3, -3)),
        "deis-tab": Case(DEIS(3, "tab"), partial(rows.deis_tab, order=3), FINITE, **tab, knots="short"),
        "deis-tab-2": Case(DEIS(2, "tab"), partial(rows.deis_tab, order=2), SPANNED, **tab, knots="short"),
    }


def _few() -> dict[str, Case]:
    exponential = {"family": "exponential", "keeps_marginals": True, "spans": ()}
    every = tuple(SETTINGS)
    af3 = {"gamma_0": 0.8, "gamma_min": 0.3, "noise_scale": 1.0, "step_scale": 1.0}
    two = {"evaluations": (2, 0), "clean_evaluations": -1}
    return {
        "renoise": Case(Renoise(), few.consistency, every, **exponential),
        "renoise-0.4": Case(Renoise(0.4), partial(few.partly_renoised, gamma=0.4), FINITE, **exponential),
        "tcd": Case(
            Renoise(0.3, "time"),
            partial(few.tcd, gamma=0.3),
            ("vp-linear", "subvp", "ve", "edm", "flow", "pair"),
            **exponential,
        ),
        "tcd-table": Case(
            Renoise(0.3, "time"), partial(few.tcd, gamma=0.3, table=True), ("ddpm-table", "smld-table"), **exponential
        ),
        "af3": Case(
            AlphaFold3(**af3),
            partial(few.alphafold3, **af3, capped=True),
            ("edm", "vp-linear", "ve", "smld-table"),
            **exponential,
        ),
        "af3-flow": Case(AlphaFold3(**af3), partial(few.alphafold3, **af3), ("flow",), **exponential),
        "euler-ancestral-rf": Case(
            AncestralSplit(DDIM(), rule="flow"),
            partial(few.rectified, step=few.flow_euler),
            every,
            "exponential",
            True,
            eta=1.0,
            late=("vp-linear",),
        ),
        "dpm-2-flow": Case(
            DPMSolver(2, "flow"),
            partial(few.rectified, step=few.flow_dpm_2, eta=0.0),
            every,
            "exponential",
            True,
            **two,
        ),
        "dpm-2-ancestral-rf": Case(
            AncestralSplit(DPMSolver(2, "flow"), rule="flow"),
            partial(few.rectified, step=few.flow_dpm_2),
            tuple(name for name in SETTINGS if name != "vp-cosine"),  # see dpm-2-ancestral
            "exponential",
            True,
            eta=1.0,
            orders=(1, 2),
            **two,
        ),
        "dpmpp-2s-ancestral-rf": Case(
            AncestralSplit(DPMSolver(2, "x0"), 0.7, "flow"),
            partial(few.rectified, step=few.flow_dpmpp_2s, eta=0.7),
            (*SPANNED, "flow", "ddpm-table", "smld-table"),
            "exponential",
            True,
            eta=math.sqrt(0.7),
            orders=(1, 2),
            **two,
        ),
    }


CASES = _cases()
PAIRS = [(name, setting) for name, case in CASES.items() for setting in case.schedules]


def cells_of(name: str) -> list[tuple[str, str, bool]]:
    """(case, setting, to the clean end or not): all cells of a case."""
    return [(name, setting, clean) for setting in CASES[name].schedules for clean in (True, False)]


def two_of(name: str) -> list[tuple[str, str, bool]]:
    """Cells of two settings of a case, others from case to case, with both ends."""
    k, settings = list(CASES).index(name), CASES[name].schedules
    chosen = dict.fromkeys(settings[(k + i) % len(settings)] for i in range(2))
    return [(name, setting, clean) for setting in chosen for clean in (True, False)]


def others_of(name: str) -> list[tuple[str, str, bool]]:
    """Cells of a case that are not of these two settings."""
    two = two_of(name)
    return [cell for cell in cells_of(name) if cell not in two]


def knots_of(name: str, setting: str, clean: bool) -> np.ndarray:
    if CASES[name].family == "published":
        return np.linspace(1.0, 0.02, 26)  # beta_i < 1 needs more than 20 steps
    knots = np.array(SETTINGS[setting].knots)
    return knots if clean else knots[:-1]
