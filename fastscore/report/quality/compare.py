"""One comparison for points and images: which figures there are of two sets, and how each is found."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastscore.errors import typed
from fastscore.model.nets.classifier import Classifier
from fastscore.output.progress import Progress
from fastscore.report.metrics import features, frechet_distance
from fastscore.report.quality import images, known, points
from fastscore.report.quality.figures import LEVEL, Figure, Quality
from fastscore.report.quality.resample import Floats, Judged, Statistic, judge, shuffled, split
from fastscore.report.quality.rows import checked, flat

PAIRS, NEAREST = 2000, 5000
FAMILIES = {
    "moments": ("mean-worst", "mean-rms", "std-worst", "std-rms"),
    "covariances": ("covariance", "fisher-gaussian"),
    "grid": ("kl-forward", "kl-reverse"),
    "sliced": ("sliced-w2",),
    "energy": ("energy",),
    "neighbours": ("neighbour-likelihood", "neighbour-local"),
    "likelihood": ("log-likelihood", "local-likelihood"),
    "stein": ("stein",),
    "distance": ("classifier-fid",),
    "precision": ("precision",),
    "recall": ("recall",),
    "memory": ("memorised",),
    "shares": ("class-shares",),
    "labels": ("label-agreement",),
}
FIGURES = tuple(name for names in FAMILIES.values() for name in names)
Values = Any  # an array or a tensor


@typed
def compare(
    samples: Values,
    reference: Values,
    *,
    score: Callable[..., Any] | None = None,
    log_density: Callable[..., Any] | None = None,
    real: Values | None = None,
    train: Values | None = None,
    classifier: Classifier | None = None,
    labels: Values | None = None,
    real_labels: Values | None = None,
    figures: Collection[str] | None = None,
    more: Mapping[str, Figure] | None = None,
    seed: int = 0,
    level: float = LEVEL,
    progress: bool = False,
) -> Quality:
    r"""Compare samples with real data: a figure each of many ways to differ, with its floor, standard error, p-value.

    Args:
        samples: [n, ..], n >= 2: points [n, D], sequences, float images [n, C, H, W]; or images in whole numbers
            [n, H, W, C], uint8 or uint16, which are compared in -1 .. 1.
        reference: real data [m, ..] of the same shape and kind, m >= 2, none of which the samples were made of.
        score: grad ln p of the target at tensors [k, ..] of samples, like them; for the kernel Stein discrepancy and
            the Fisher divergence of Gaussian fits.
        log_density: ln p at the same, [k]; for the log-likelihood.
        real: real data that are independent of the reference: what floors are made of. Halves of the reference if it is
            left out.
        train: images that the model was trained on, for the memorisation check; the reference itself, each image
            without itself, if they are left out.
        classifier: whose features and classes judge images.
        labels, real_labels: classes that samples [n] were asked for, and those of ``real`` or else ``reference``.
        figures: names of FIGURES, or what precedes their hyphen ("mean"); all that can be found if left out.
        more: figures that were found elsewhere, to be judged with these.
        seed: of resampling and subsampling; the report is a function of it.
        level: family-wise error rate of the verdicts.
        progress: whether to show a bar.

    Raises:
        ValueError: fewer than 2 rows, shapes that differ, numbers that are not finite, an unknown figure, a level or
            seed out of range.
    """
    x, y = checked("samples", samples), checked("reference", reference)
    r = None if real is None else checked("real", real)
    for name, other in (("reference", y), ("real", r)):
        if other is not None and other.shape[1:] != x.shape[1:]:
            raise ValueError(f"samples have shape {x.shape[1:]}, {name} data {other.shape[1:]}; compare like with like")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level = {level} must lie between 0 and 1, as 0.01")
    labels, real_labels = (None if v is None else np.asarray(v) for v in (labels, real_labels))
    for name, given, rows in (("labels", labels, x), ("real_labels", real_labels, y if r is None else r)):
        if given is not None and given.shape != (len(rows),):
            raise ValueError(f"{name} of shape {given.shape} must be one number for each of {len(rows)} rows")
    task = _Comparison(x, y, r, train, score, log_density, classifier, labels, real_labels, seed)
    plan = [family for family in task.plan() if figures is None or chosen(FAMILIES[family], figures)]
    found: dict[str, Figure] = {}
    with Progress(progress, "figures").begin(sum(len(FAMILIES[family]) for family in plan)) as bar:
        for family in plan:
            found |= getattr(task, f"_{family}")()
            bar.advance(len(FAMILIES[family]))
    found = {name: f for name, f in found.items() if figures is None or chosen((name,), figures)}
    return Quality({**found, **(more or {})}, f"{len(x)} samples", f"{len(y)} of the reference", task.caveats, level)


def chosen(names: Collection[str], figures: Collection[str]) -> bool:
    """Return whether any of the names is among figures, or begins with one of them and a hyphen.

    Raises:
        ValueError: one of the figures is none.
    """
    for figure in figures:
        if figure not in (*FIGURES, *(name.split("-")[0] for name in FIGURES)):
            raise ValueError(f"figure {figure!r} must be one of {', '.join(FIGURES)}")
    return any(name in figures or name.split("-")[0] in figures for name in names)


@dataclass
class _Comparison:
    """What is compared, and a method for each family of figures."""

    x: NDArray[Any]
    y: NDArray[Any]
    more_real: NDArray[Any] | None
    train: NDArray[Any] | None
    score: Callable[..., Any] | None
    log_density: Callable[..., Any] | None
    classifier: Classifier | None
    labels: NDArray[Any] | None
    real_labels: NDArray[Any] | None
    seed: int
    caveats: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Floors compare ``real`` with ``fit``, where samples are compared with y.
        if self.more_real is not None:
            self.real, self.fit = self.more_real[: len(self.x)], self.y
            if self.real_labels is not None:
                self.real_labels = self.real_labels[: len(self.x)]
        else:
            order = shuffled(len(self.y), self.seed)  # rows may lie by class
            half = (len(self.y) + 1) // 2
            self.real, self.fit = self.y[order[:half]], self.y[order[half:]]
            if self.real_labels is not None:
                self.real_labels = self.real_labels[order[:half]]
            self.caveats.append(
                f"floors are of one half of the reference against the other ({half} and {len(self.fit)} rows)"
            )
        d = math.prod(flat(self.x[:1]).shape[1:])
        self.rows = int(np.clip(8e6 / d, 500, 50_000))
        for name, rows in (("samples", self.x), ("references", self.y)):
            if len(rows) > self.rows:
                self.caveats.append(f"figures of the values themselves are of {self.rows} of {len(rows)} {name}")
        if min(len(self.x), len(self.y)) < 100:
            self.caveats.append("fewer than 100 rows: little can be seen, and p-values of shares are coarse")

    def plan(self) -> list[str]:
        """Return the families of figures that can be found."""
        least, d = min(len(self.x), len(self.fit), len(self.real)), flat(self.x[:1]).shape[1]
        values = self.x.ndim < 4 and self.x.dtype.kind == "f"
        plan = ["moments", "covariances"]
        plan += ["grid"] if d <= 2 else []
        plan += ["sliced", "energy"]
        plan += ["neighbours"] if values and d <= points.LARGEST and least >= 10 else []
        plan += ["likelihood"] if self.log_density else []
        plan += ["stein"] if self.score else []
        if self.classifier is not None:
            plan += ["distance"]
            plan += ["precision", "recall"] if least > 2 * images.NEIGHBOURS + 1 else []
        plan += ["memory"] if not values else []
        if self.classifier is not None:
            plan += ["shares"] + (["labels"] if self.labels is not None else [])
        return plan

    # --- values ---------------------------------------------------------------------------------

    def _moments(self) -> dict[str, Figure]:
        return self._two_sample(points.Moments, self.rows)

    def _covariances(self) -> dict[str, Figure]:
        d = flat(self.x[:1]).shape[1]
        if d > points.LARGEST:
            self.caveats.append(f"covariance: of {points.LARGEST} random directions of {d}")
        fits = self.score is not None and d <= points.LARGEST and min(len(self.x), len(self.fit)) > 4 * d
        return self._two_sample(lambda x: points.Covariances(x, fits), self.rows)

    def _grid(self) -> dict[str, Figure]:
        n, m = min(len(self.x), self.rows), min(len(self.y), self.rows)
        return self._two_sample(lambda x: points.GridKL(x, n, m), self.rows)

    def _sliced(self) -> dict[str, Figure]:
        return self._two_sample(points.SlicedWasserstein, PAIRS)

    def _energy(self) -> dict[str, Figure]:
        if max(len(self.x), len(self.y)) > PAIRS:
            self.caveats.append(f"sliced-w2, energy, stein, precision and recall are of {PAIRS} rows a set at most")
        return self._two_sample(points.Energy, PAIRS)

    def _neighbours(self) -> dict[str, Figure]:
        fit, real, x = (flat(self._some(v, NEAREST)) for v in (self.fit, self.real, self.x))
        here, there = points.neighbour_likelihoods(fit, x, real)
        pairs = zip(FAMILIES["neighbours"], here, there, strict=True)
        return {name: _figure(*known.log_likelihood(u, v)) for name, u, v in pairs}

    def _likelihood(self) -> dict[str, Figure]:
        assert self.log_density is not None
        sets = self.x, np.concatenate([self.y, self.real])
        here, there = (known.numbers(self.log_density, v) for v in sets)
        found = {"log-likelihood": _figure(*known.log_likelihood(here, there))}
        if self.score is not None:
            scores = [known.numbers(self.score, v).reshape(len(v), -1) for v in sets]
            here, there = (known.local(*pair) for pair in zip((here, there), scores, strict=True))
            found["local-likelihood"] = _figure(*known.log_likelihood(here, there))
        return found

    def _stein(self) -> dict[str, Figure]:
        assert self.score is not None
        x, real = self._some(self.x, PAIRS), self._some(self.real, PAIRS)
        here, there = (known.Stein(flat(v), known.numbers(self.score, v).reshape(len(v), -1)) for v in (x, real))
        return {"stein": _figure(here.judged(self.seed), there.value())}

    # --- images ---------------------------------------------------------------------------------

    def _distance(self) -> dict[str, Figure]:
        x, y, real, fit = (self._features(v)[0] for v in (self.x, self.y, self.real, self.fit))
        whole = judge(
            images.FeatureDistance(np.concatenate([x, y])), len(x), len(y), self.seed, permutations=0, resamples=20
        )
        some, other = self._some(x, PAIRS), self._some(y, PAIRS)
        statistic = images.FeatureDistance(np.concatenate([some, other]))
        part = judge(statistic, len(some), len(other), self.seed, permutations=100, resamples=0)
        judged = whole["classifier-fid"]._replace(p=part["classifier-fid"].p)
        if max(len(x), len(y)) > PAIRS:
            self.caveats.append(f"classifier-fid is of all images, its p-value of {PAIRS} a set at most")
        floor = frechet_distance(real, fit) if min(len(real), len(fit)) > 1 else None
        return {"classifier-fid": _figure(judged, floor)}

    def _precision(self) -> dict[str, Figure]:
        return {"precision": _figure(*images.precision(*self._three()))}

    def _recall(self) -> dict[str, Figure]:
        return {"recall": _figure(*images.recall(*self._three()))}

    def _memory(self) -> dict[str, Figure]:
        train = self.fit if self.train is None else self.train
        x = self._some(self.x, PAIRS)
        if self.train is None:  # halves of what there is: one as if it had been trained on
            unseen = self._some(self.real, PAIRS)
            self.caveats.append("memorised: no training images were given; the reference stands for them")
        else:
            unseen = self._some(self.y, PAIRS)
        near, far = (
            images.nearest(flat(v).astype(np.float32), lambda rows: flat(train[rows]).astype(np.float32), len(train))
            for v in (x, unseen)
        )
        return {"memorised": _figure(*images.memorised(near, far))}

    def _shares(self) -> dict[str, Figure]:
        x, y, real, fit = (self._features(v)[1] for v in (self.x, self.y, self.real, self.fit))
        return self._judged(images.ClassShares, *(self._some(v, self.rows) for v in (x, y, real, fit)))

    def _labels(self) -> dict[str, Figure]:
        here = self._features(self.x)[1] == self.labels
        there = None if self.real_labels is None else self._features(self.real)[1] == self.real_labels
        return {"label-agreement": _figure(*images.agreement(here, there))}

    # --- what they share ------------------------------------------------------------------------

    def _two_sample(self, make: Callable[[Floats], Statistic], most: int) -> dict[str, Figure]:
        return self._judged(make, *(flat(self._some(v, most)) for v in (self.x, self.y, self.real, self.fit)))

    def _judged(self, make: Any, x: Floats, y: Floats, real: Floats, fit: Floats) -> dict[str, Figure]:
        judged = judge(make(np.concatenate([x, y])), len(x), len(y), self.seed)
        floors: Any = [None] * len(judged)
        if min(len(real), len(fit)) > 1:
            floors = make(np.concatenate([real, fit]))(*split(len(real), len(fit)))[0]
        return {name: _figure(j, floor) for (name, j), floor in zip(judged.items(), floors, strict=True)}

    def _some(self, rows: NDArray[Any], most: int) -> NDArray[Any]:
        """Return ``most`` of the rows in random order, if there are more."""
        return rows if len(rows) <= most else rows[np.sort(shuffled(len(rows), self.seed)[:most])]

    def _three(self) -> tuple[Floats, Floats, Floats]:
        x, real, fit = (self._features(v)[0] for v in (self.x, self.real, self.fit))
        return self._some(x, PAIRS), self._some(real, PAIRS), self._some(fit, PAIRS)

    def _features(self, rows: NDArray[Any]) -> tuple[Floats, NDArray[np.int64]]:
        """Return features and classes, computed once."""
        assert self.classifier is not None
        self._known: dict[int, Any] = getattr(self, "_known", {})
        if id(rows) not in self._known:
            self._known[id(rows)] = features(self.classifier, rows)
        return self._known[id(rows)]


def _figure(judged: Judged, floor: Any) -> Figure:
    return Figure(judged.value, None if floor is None else float(floor), judged.stderr, judged.p)
