"""Pictures, read back: what lines, panels and titles hold is what was given."""

from __future__ import annotations

import io
import math

import matplotlib
import numpy as np
import pytest
from PIL import Image

import fastscore as fs
from fastscore import plan as plans
from fastscore.process.names import SCHEDULES, named_schedule
from fastscore.process.schedule import g2, lam
from fastscore.report import plots
from fastscore.report.plots import figures, moving, paths, points
from fastscore.solvers.names import named

pytestmark = pytest.mark.filterwarnings("error")
RNG = np.random.default_rng(0)


def lines(axis):
    return [np.array(line.get_data(), float) for line in axis.get_lines()]


def data_axes(figure):
    return [axis for axis in figure.axes if axis.axison]


def test_schedules_are_those_that_were_named():
    named = {name: named_schedule(name, fs.VP()) for name in SCHEDULES}
    figure = plots.schedules(named)
    alpha, sigma, snr, diffusion, _, spread = figure.axes
    assert [line.get_label() for line in alpha.get_lines()] == list(SCHEDULES)
    looks = {(line.get_color(), line.get_linestyle()) for line in alpha.get_lines()}
    assert len(looks) == len(SCHEDULES)
    for k, schedule in enumerate(named.values()):
        first = schedule.t_clean if math.isfinite(schedule.t_clean) else 0.0
        t = np.linspace(first, schedule.T, 513)
        with np.errstate(all="ignore"):
            expected = (
                schedule.alpha(t),
                schedule.sigma(t),
                2 * lam(schedule, t),
                g2(schedule, t) * (schedule.T - first),
            )
            expected = (*expected, np.hypot(schedule.alpha(t), schedule.sigma(t)))
        for axis, values in zip((alpha, sigma, snr, diffusion, spread), expected, strict=True):
            x, y = lines(axis)[k]
            known = np.isfinite(values)
            assert np.array_equal(y[known], values[known]) and np.isnan(y[~known]).all()
            assert x[0] == 0.0 and x[-1] == 1.0
    vp, ddpm = (lines(diffusion)[SCHEDULES.index(name)] for name in ("vp", "ddpm"))
    assert np.allclose(vp[1][20:-1], ddpm[1][20:-1], rtol=0.03)  # the table in the time of its limit
    with pytest.raises(ValueError, match="at least one schedule"):
        plots.schedules({})


def test_a_plan_has_its_own_coefficients():
    for solver, schedule in (("dpmpp-2m-sde", fs.VP()), ("heun", fs.Flow()), ("unipc", fs.VE())):
        table = plans.make_plan(named(solver), schedule, fs.logsnr(7, start=0.99, clean=True)(schedule))
        figure = plots.plan_rows(table, "so named")
        over_t, over_knots, a, b, w, c = figure.axes
        for axis, name in ((a, "a"), (b, "b"), (c, "c")):
            values = [getattr(row, name) for row in table.rows[1:]]
            drawn = lines(axis)
            assert np.array_equal(drawn[0][1], values) if drawn else not any(values)
        for line in w.get_lines():
            slot = int(line.get_label().split()[1])
            assert np.array_equal(line.get_ydata(), [[*row.w, 0, 0, 0, 0][slot] for row in table.rows[1:]])
        knots = np.array([row.s for row in table.rows])
        with np.errstate(divide="ignore"):
            snr = 2 * lam(schedule, knots)
        marked, beyond = over_knots.collections[0].get_offsets(), over_knots.collections[1].get_offsets()
        assert np.array_equal(np.asarray(marked)[:, 1], snr[np.isfinite(snr)])
        assert len(beyond) == 1 and np.asarray(beyond)[0, 1] == over_knots.get_ylim()[1]  # the clean end
        assert np.isfinite(over_t.get_xlim()).all() and over_t.xaxis_inverted()
        assert f"{table.nfe} network evaluations" in figure.get_suptitle() and "so named" in figure.get_suptitle()
    corrected = fs.PredictorCorrector(fs.EulerMaruyama(), fs.Langevin(snr=0.1))
    table = plans.make_plan(corrected, fs.VP(), fs.uniform(5)(fs.VP()))
    b = plots.plan_rows(table).axes[3]
    known = [k for k, row in enumerate(table.rows) if k and row.langevin is None]
    assert np.array_equal(lines(b)[0][0], known) and "rows set at run time" in b.get_title()


def test_images_on_their_way():
    x = RNG.uniform(-1, 1, (5, 3, 1, 4, 4))
    x[2:, 1] = math.nan  # a sample of an adaptive solver that ended early
    figure = plots.image_strip(x, x[:4], [f"t = {k}" for k in range(5)], "title")
    assert [axis.get_title() for axis in figure.axes[:5]] == [f"t = {k}" for k in range(5)]
    rows = np.array([axis.images[0].get_array() if axis.images else np.full((4, 4), -1) for axis in figure.axes])
    rows = rows.reshape(4, 5, 4, 4)
    assert np.allclose(rows[0], x[:, 0, 0] / 2 + 0.5) and np.allclose(rows[1, :4], rows[0, :4])
    assert (rows[1, 4] == -1).all()  # no step leaves the last state
    assert np.allclose(rows[2, 2:], x[1, 1, 0] / 2 + 0.5)  # it rests where it ended
    rgb = RNG.standard_normal((3, 4, 4)) * 50
    shown = figures.as_image(rgb)
    assert shown.shape == (4, 4, 3) and 0 <= shown.min() and shown.max() <= 1 and 0.2 < shown.std() < 0.45
    assert np.allclose(figures.as_image(np.full((3, 2, 2), 0.5)), 0.75)
    assert figures.as_image(np.full((1, 2, 2), math.nan)).max() == 0.0
    assert figures.as_image(np.zeros((4, 2, 2))).shape == (2, 2, 3) and figures.as_image(np.zeros((2, 2, 2))).ndim == 2


def test_points_on_their_way():
    x = RNG.standard_normal((10, 30, 2))
    x[4:, 7], x[3, 5, 0] = math.nan, math.inf
    names = [f"t = {k}" for k in range(10)]
    figure = plots.point_panels(x, names, "title")
    axes = data_axes(figure)
    rows = {round(axis.get_subplotspec().rowspan.start) for axis in axes}
    assert len(axes) == 10 and rows == {0, 1}
    assert [axis.get_title() for axis in axes] == [*names[:3], "t = 3\n1 of 30 not finite", *names[4:]]
    assert np.array_equal(axes[9].collections[0].get_offsets()[7], x[3, 7])  # the last state that it had
    assert len(axes[3].collections[0].get_offsets()) == 29
    for shape, n in (((4, 3), 4), ((4, 5, 2), 20), ((4, 5, 1), 4), ((4, 1), 4)):
        points_of = np.arange(np.prod(shape)).reshape(shape)
        plane = figures.as_plane(points_of)
        assert plane.shape == (n, 2) and plane[0].tolist() == [0.0, 0.0 if shape == (4, 1) else 1.0]
    one = plots.point_panels(x[:1, :1], names[:1])  # one sample, at one time
    assert len(data_axes(one)) == 1
    own = plots.point_panels(np.stack([100 * x[0], x[1]]), names[:2])
    assert own.axes[0].get_xlim()[1] > 10 * own.axes[1].get_xlim()[1]


def test_paths_over_time():
    t, x = np.linspace(1, 0, 6), RNG.standard_normal((6, 4, 1))
    left, right = plots.paths_over_time(x, t).axes
    assert all(np.array_equal(line, [t, x[:, k, 0]]) for k, line in enumerate(lines(left)))
    assert len(lines(left)) == 4 and left.xaxis_inverted() and right.get_title() == "last states of 4"
    own = np.where(np.arange(6)[:, None] < [6, 4, 3, 6], t[:, None] * [1, 0.5, 2, 1], math.nan)
    states = np.where(np.isnan(own)[..., None], math.nan, x)
    left, right = plots.paths_over_time(states, own).axes
    assert all(np.array_equal(line[0], own[:, k], equal_nan=True) for k, line in enumerate(lines(left)))
    plane = plots.paths_over_time(RNG.standard_normal((6, 4, 2)), t).axes[0]
    assert len(lines(plane)) == 4 and len(plane.collections) == 2
    assert paths.labels_of(own)[4] == "t in 0.2 .. 0.2" or paths.labels_of(own)[5] == "t = 0"


def test_densities_are_exact_and_in_one_scale():
    weights, means, stds = np.array([0.3, 0.7]), np.array([[-1.0, 0.5], [1.0, 0.0]]), np.array([0.3, 0.05])
    square = (np.array([0.1, 0.0]), 3.0)
    edges = points.cells(square)
    exact = points.exact_density(weights, means, stds, 0.8, 0.4, square)
    middle = [(e[1:] + e[:-1]) / 2 for e in edges]
    by_values = 0.0
    for w, mu, s in zip(weights, means, stds, strict=True):
        v = 0.64 * s**2 + 0.16
        parts = [
            np.exp(-((m - 0.8 * c) ** 2) / (2 * v)) / math.sqrt(2 * math.pi * v)
            for m, c in zip(middle, mu, strict=True)
        ]
        by_values = by_values + w * np.outer(*parts)
    assert np.abs(exact - by_values).max() < 0.01 * by_values.max()
    area = (6.0 / points.BINS) ** 2
    assert abs(exact.sum() * area - 1.0) < 1e-5  # the tails beyond the square
    sharp = points.exact_density(np.array([1.0]), means[:1], np.zeros(1), 1.0, 0.0, square)
    counted = points.counted_density(means[:1].repeat(5, axis=0), square)
    assert np.array_equal(sharp > 0, counted > 0) and np.isclose(counted.sum() * area, 1.0)  # a point is in its cell
    figure = plots.density([exact, sharp], [exact / 2, counted], [square] * 2, [0.5, 0.0], "title")
    images = [axis.images[0] for axis in figure.axes[:4]]
    assert {image.get_clim() for image in images} == {(0.0, 1.0)}
    assert np.allclose(images[2].get_array(), exact.T / exact.max() / 2)  # the row below, by the highest one above
    assert [axis.get_title() for axis in figure.axes[:2]] == ["t = 0.5", "t = 0"]


def test_sets_side_by_side_are_of_one_size():
    sets = {"data": RNG.standard_normal((50, 2)), "em\n9 evaluations": RNG.standard_normal((20, 2))}
    figure = plots.compare(sets)
    assert [axis.get_title() for axis in figure.axes] == list(sets) and figure.get_suptitle() == "20 of each"
    assert [len(axis.collections[0].get_offsets()) for axis in figure.axes] == [20, 20]
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()
    pictures = plots.compare({"a": np.zeros((5, 3, 4, 4)), "b": np.zeros((7, 3, 4, 4))})
    assert [axis.images[0].get_array().shape for axis in pictures.axes] == [(9, 14, 3)] * 2
    assert len(plots.compare({"a": RNG.standard_normal((9, 1))}).axes[0].patches) == points.BINS
    for other in (
        {},
        {"a": np.zeros((2, 2)), "b": np.zeros((2, 3))},
        {"a": np.zeros((2, 2)), "b": np.zeros((2, 1, 4, 4))},
    ):
        with pytest.raises(ValueError, match="compare"):
            plots.compare(other)
    x0 = RNG.standard_normal((9, 2))
    forward = plots.forward([x0, 0.6 * x0 + 0.8], [0.0, 0.5], [1.0, 0.6], [0.0, 0.8])
    assert [axis.get_title() for axis in forward.axes] == ["data\nalpha 1, sigma 0", "t = 0.5\nalpha 0.6, sigma 0.8"]
    assert np.allclose(forward.axes[1].collections[0].get_offsets(), 0.6 * x0 + 0.8)


def test_chains_over_steps():
    states = RNG.standard_normal((5, 6, 2))
    plane, traces = plots.chains(states, np.full(5, 0.9), 30, 10).axes
    assert np.array_equal(lines(traces)[2], [[30, 40, 50, 60, 70, 80], states[2, :, 0]])
    assert np.array_equal(lines(plane)[1], states[1].T) and len(lines(plane)) == 4
    assert traces.get_lines()[0].get_label() == "chain 0, 90% taken"
    assert len(plots.chains(RNG.standard_normal((2, 3, 1, 4, 4)), None, 1, 1).axes) == 6
    assert len(lines(plots.chains(states[:1, :, :1], None, 0, 1).axes[1])) == 1


def test_curves():
    axis = plots.loss_curve(np.array([1.0, 2, 3]), np.array([0.5, 0.2, 0.1])).axes[0]
    assert np.array_equal(lines(axis)[0], [[1, 2, 3], [0.5, 0.2, 0.1]]) and axis.get_yscale() == "log"
    assert plots.loss_curve(np.array([1.0]), np.array([-0.5])).axes[0].get_yscale() == "symlog"
    study = {"images": {"heun": [(20, 0.2), (10, 0.5)], "a$b$": [(5, 1.0)]}}
    axis = plots.work_precision(study).axes[0]
    assert np.array_equal(lines(axis)[0], [[10, 20], [0.5, 0.2]]) and axis.get_yscale() == "log"
    with pytest.raises(ValueError, match="no record"):
        plots.work_precision({"images": {}})
    found = {
        "good": {"value": 0.03, "floor": 0.02, "stderr": 0.01}, "bad": {"value": 0.3, "floor": 0.1, "stderr": 0.01},
        "none": {"value": 2.0}, "nan": {"value": math.nan, "floor": 1.0},
    }  # fmt: skip
    axis = plots.quality(found).axes[0]
    assert np.allclose([bar.get_x() + bar.get_width() for bar in axis.patches], [1.5, 3.0])
    assert [bar.get_hatch() for bar in axis.patches] == [None, "//"]
    assert [text.get_text() for text in axis.texts] == ["0.03 ± 0.01, floor 0.02", "0.3 ± 0.01, floor 0.1", "2", "NaN"]
    with pytest.raises(ValueError, match="no figure"):
        plots.quality({})


def test_moving_pictures_loop_and_rest_at_the_end():
    x = RNG.standard_normal((4, 9, 1, 6, 6))
    frames = list(moving.frames_of(x, list("abcd")))
    assert [frame.shape for frame in frames] == [frames[0].shape] * 4 and frames[0].shape[2] == 3
    for format in ("GIF", "PNG"):
        file = io.BytesIO()
        plots.animate(file, frames, format)
        picture = Image.open(file)
        durations = []
        for k in range(4):
            picture.seek(k)
            picture.load()  # an APNG says how long a frame stays once it is read
            durations.append(picture.info["duration"])
            assert format == "GIF" or np.array_equal(np.asarray(picture.convert("RGB")), frames[k])
        assert picture.n_frames == 4 and picture.info["loop"] == 0 and durations == [80, 80, 80, 2000]
    dots = list(moving.frames_of(RNG.standard_normal((2, 9, 2)), ["a", "b"]))
    assert dots[0].shape == dots[1].shape and (dots[0] != dots[1]).any()
    with pytest.raises(ValueError, match="no frame"):
        plots.animate(io.BytesIO(), [], "GIF")


def saved(figure, suffix):
    file = io.BytesIO()
    plots.save(figure, file, suffix)
    return file.getvalue()


@pytest.mark.parametrize("suffix", [".png", *[pytest.param(s, marks=pytest.mark.slow) for s in (".svg", ".pdf")]])
def test_bytes_depend_on_the_input_alone(suffix):
    """Not on the day, the version, the user's matplotlibrc, nor on what names hold; and nothing is printed."""

    def make():
        return plots.loss_curve(np.arange(3.0), np.arange(1.0, 4.0), r"50$\nothing$ 日本_x^2")

    first = saved(make(), suffix)
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "savefig.transparent": True}):
        assert saved(make(), suffix) == first
    for word in (b"Matplotlib", b"CreationDate", b"dc:date"):
        assert word not in first
    assert "pyplot" not in str(type(make().canvas))
