"""The simulation of the shard store: closed forms where nothing is random, and what must hold where something is."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from bench.studies import shard_store, simulate_scale
from bench.studies.shard_store import DONE, HOUR, Setting, Simulation, backlog, peak

SMALL = Setting(samples=40_000, shard=100, workers=20, ramp=0.0)  # 400 shards of 10 s
CALM = replace(SMALL, spread=0.0, stopped=0.0, hung=0.0)


def simulate(setting):
    simulation = Simulation(setting)
    out = simulation.run()
    assert (simulation.state == DONE).all()
    return out


@pytest.mark.parametrize("leases", [False, True])
@pytest.mark.parametrize("strided", [False, True])
def test_without_failures_time_is_shards_by_seconds_by_workers(leases, strided):
    setting = replace(CALM, leases=leases, strided=strided)
    out = simulate(setting)
    assert out.seconds == setting.ideal == 400 * 10.0 / 20
    assert (out.restarts, out.lost, out.twice) == (0, 0.0, 0)
    assert len(out.stored) == 201 and sum(out.stored) == 40_000 * setting.sample_bytes


def test_every_request_without_failures_is_counted():
    alone, leased = simulate(replace(CALM, leases=False)), simulate(replace(CALM, patience=15.0))
    assert alone.asked == {"create": 400, "renew": 0, "delete": 0, "look": 0, "list": 20}
    refused = 19  # at the end: all but the last to finish try a shard that another is about to finish
    assert leased.asked | {"list": 0} == {"create": 800 + refused, "renew": 1600, "delete": 400, "look": 400, "list": 0}
    for out in (alone, leased):
        asked = out.asked
        assert sum(out.writes) == asked["create"] + asked["renew"] + asked["delete"]
        assert sum(out.reads) == asked["look"] + asked["list"]


def test_parts_alone_wait_for_the_slowest_and_leases_do_not():
    setting = replace(CALM, spread=0.2)
    alone, leased = simulate(replace(setting, leases=False)), simulate(setting)
    slowest = max(Simulation(setting).speed)
    assert alone.seconds == pytest.approx(20 * slowest)
    speed = sum(1.0 / s for s in Simulation(setting).speed)
    assert 400 / speed <= leased.seconds <= 400 / speed + 2 * slowest + setting.patience


def test_a_stop_costs_half_a_shard_and_the_time_until_the_worker_is_back():
    setting = replace(CALM, samples=4_000_000, leases=False, stopped=0.5, restart=100.0)
    out = simulate(setting)
    up = out.seconds - 100.0 * out.restarts / 20  # of each worker, about: the end is ragged
    expected = 0.5 * 20 * up / HOUR
    assert abs(out.restarts - expected) < 4 * math.sqrt(expected) + 4
    assert out.lost / out.restarts == pytest.approx(setting.seconds / 2, rel=4 / math.sqrt(12 * out.restarts) * 2)
    worst = out.restarts * (setting.seconds + 100.0)
    assert setting.ideal < out.seconds <= setting.ideal + worst


def test_a_hung_worker_is_computed_twice_if_it_hangs_beyond_patience():
    hung = replace(CALM, samples=400_000, hung=2.0, patience=20.0)
    assert simulate(replace(hung, hang=19.0)).twice == 0
    assert simulate(replace(hung, hang=500.0)).twice > 0
    assert simulate(replace(hung, hang=500.0, leases=False)).twice == 0


def test_what_is_there_is_not_made_again():
    out = simulate(replace(CALM, leases=False, present=0.5))
    assert out.asked["create"] == 200


def test_parts_that_are_stretches_list_less_when_all_resume():
    setting = replace(CALM, samples=2_000_000, leases=False, present=0.5)  # 20 folders, half full
    assert simulate(setting).asked["list"] == 20
    assert simulate(replace(setting, strided=True)).asked["list"] == 20 * 10


def test_who_finds_nothing_waits_twice_as_long_each_time():
    out = simulate(replace(CALM, samples=100, workers=2, patience=1.0))  # one shard of 10 s
    assert out.reads[1:8] == [1, 0, 1, 0, 0, 0, 1]  # the idle one's lists at 1, 3 and 7 s


@pytest.mark.parametrize("strided", [False, True])
def test_parts_hold_every_shard_once(strided):
    simulation = Simulation(replace(CALM, samples=39_999, workers=7, strided=strided))
    assert sorted(k for w in range(7) for k in simulation.part(w)) == list(range(400))


def test_a_seed_is_a_run():
    setting = replace(SMALL, stopped=2.0, hung=2.0)
    assert simulate(setting) == simulate(setting) != simulate(replace(setting, seed=1))


def test_peaks_and_waits():
    assert peak([]) == 0.0 and peak([5.0]) == 5.0
    assert peak([0.0] * 30 + [10.0] * 5 + [0.0] * 30) == 5.0
    assert backlog([10.0, 0.0, 0.0, 3.0], served=2.0) == 4.0
    assert backlog([2.0] * 99, served=2.0) == 0.0


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"patience": 0.0}, {"present": 1.0}, {"hang": math.inf}])
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Setting(**wrong)


def test_the_study(monkeypatch, capsys):
    monkeypatch.setattr(simulate_scale, "publish", lambda *_: pytest.fail("--quick publishes nothing"))
    assert simulate_scale.main(["--quick", "--samples", "20000", "--workers", "5"]) == 0
    said = capsys.readouterr().out
    assert "**200 shards** of 100 samples" in said
    for name in simulate_scale.scenarios(Setting()):
        assert f"| {name} |" in said
    with pytest.raises(SystemExit, match="2"):
        simulate_scale.main(["--workers", "0"])


def test_limits_are_reached_where_the_simulation_reaches_them():
    """Steady writes of the closed form and of the simulation agree."""
    setting = replace(CALM, samples=400_000, shard=1000, patience=30.0)  # 100 s a shard: 19 renewals
    out = simulate(replace(setting, ramp=setting.seconds))
    steady = np.mean(out.writes[100:1900]) / setting.workers
    rows = {what: workers for what, _, workers in simulate_scale.limits(setting, 3500.0, 5500.0)}
    assert 3500.0 / rows["writes, with leases"] == pytest.approx(steady, rel=0.06)
    assert shard_store.FOLDER == 1000
