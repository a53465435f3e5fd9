"""What the charts and frames of a run show, against the arrays and formulas that they are made of."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

import fastscore as fs
from fastscore.plan import make_plan
from fastscore.process.grid import uniform
from fastscore.report.samples import way_parts
from fastscore.report.schedule import plan_parts, schedule_charts


def test_curves_of_a_schedule_are_its_formulas():
    schedule = fs.VP()
    levels, snr, rates = schedule_charts(schedule, [1.0, 0.5, 0.0])
    t, alpha = levels.series["alpha"]
    at = slice(1, None)  # at 0 the log-SNR is infinite
    assert np.allclose(snr.series["log-SNR"][1][at], 2.0 * np.log(alpha[at] / levels.series["sigma"][1][at]))
    assert np.allclose(rates.series["beta"][1], schedule.beta(t)) and np.allclose(
        rates.series["g²"][1][at], schedule.beta(t[at])
    )
    assert list(levels.marks) == [1.0, 0.5, 0.0] and t[0] == 0.0 and t[-1] == 1.0
    assert "beta" not in schedule_charts(fs.VE())[2].series and "Beta is 0" in schedule_charts(fs.VE())[2].text
    assert schedule_charts(fs.EDM())[0].log_x and not levels.log_x


def test_coefficients_are_those_of_the_rows_behind_the_prior():
    plan = make_plan(fs.DDIM(), fs.VP(), uniform(4)(fs.VP()))
    chart, table = plan_parts(plan)
    number, a = chart.series["a (state)"]
    assert number.tolist() == [1, 2, 3, 4] and a == [row.a for row in plan.rows[1:]]
    assert len(table.rows) == 5 and table.rows[0][:3] == [0, 1.0, 1.0] and "c (noise)" not in chart.series


def test_frames_stand_beside_their_own_estimates():
    times = np.array([1.0, 0.5, 0.0])
    states = np.stack([np.full((2, 1, 4, 4), v) for v in (0.6, 0.2, -0.6)])
    x0 = np.stack([np.full((2, 1, 4, 4), v) for v in (-1.0, 0.0)])
    frames, changes = way_parts(times, states, x0, None)
    shades = []
    for png in frames.pngs:
        image = np.asarray(Image.open(io.BytesIO(png)))
        middle = image[image.shape[0] // 4]
        shades.append((int(middle[20]), int(middle[image.shape[1] // 2 + 20])))
    assert shades == [(204, 0), (153, 128), (51, 51)]  # the last estimate is the sample
    assert np.allclose(changes.series["x"][1], [0.4, 0.8])
    assert np.isnan(changes.series["estimate of x_0"][1][0]) and changes.series["estimate of x_0"][1][1] == 1.0
