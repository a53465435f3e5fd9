"""Progress: a bar on a terminal, lines in a log, silence where nobody listens; and it moves within a micro-batch."""

from __future__ import annotations

import io
import os
import struct
import sys
from contextlib import contextmanager, suppress
from itertools import pairwise

import pytest
import torch

import fastscore as fs
from fastscore.errors import NonFiniteError
from fastscore.joint import JointSampler
from fastscore.model.analytic import by_name
from fastscore.model.joint import JointModel, Part
from fastscore.output.progress import Progress, duration, followed
from fastscore.output.store.folder import Folder
from fastscore.output.store.job import job_of
from fastscore.output.store.work import work


def test_a_log_has_a_line_each_ten_seconds_and_one_at_the_end(clock, capsys):
    with Progress().begin(3000, 300) as progress:
        for second in range(1, 28):
            clock.now = second
            progress.advance(100.0)
    said = capsys.readouterr().err
    assert said.splitlines() == [
        "fastscore: 1,300 of 3,000 samples, 100.0/s, 17 s left",
        "fastscore: 2,300 of 3,000 samples, 100.0/s, 7 s left",
        "fastscore: 3,000 of 3,000 samples, 100.0/s, 27 s",
    ]
    assert "\r" not in said


def test_what_is_short_says_nothing(clock, capsys):
    with Progress().begin(10) as progress:
        clock.now = 9.9
        progress.advance(10)
    assert capsys.readouterr().err == ""


def test_a_note_stands_at_the_end(clock, capsys):
    with Progress(unit="images").begin(10) as progress:
        clock.now, progress.note = 10.0, "loss=0.1"
        progress.advance(5)
    assert capsys.readouterr().err.splitlines() == [
        "fastscore: 5 of 10 images, 0.5/s, 10 s left, loss=0.1",
        "fastscore: 5 of 10 images, 0.5/s, 10 s, loss=0.1",
    ]


def test_an_end_by_an_error_says_how_far_it_came(clock, capsys):
    with pytest.raises(KeyboardInterrupt), Progress(unit="shards").begin(10) as progress:
        clock.now = 8.0
        progress.advance(4)
        clock.now = 12.0
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "fastscore: 4 of 10 shards, 0.3/s, 12 s\n"


def test_nothing_done_has_no_time_left(clock, capsys):
    with Progress().begin(10, 2) as progress:
        clock.now = 11.0
        progress.advance(0.0)
        clock.now = 12.0
    assert capsys.readouterr().err.splitlines()[0] == "fastscore: 2 of 10 samples, 0.0/s"


@contextmanager
def terminal(monkeypatch, columns=100):
    """Make stderr a terminal; give a list of what it shows in the end."""
    fcntl, termios = (pytest.importorskip(name, reason="no terminals here") for name in ("fcntl", "termios"))
    here, there = os.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    said = []
    with os.fdopen(there, "w") as stream:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stream)
            yield said
        stream.flush()
        os.set_blocking(here, False)
        with suppress(BlockingIOError):
            while True:
                said.append(os.read(here, 1 << 16).decode())
    os.close(here)


def test_a_terminal_has_a_bar_that_moves_by_parts_of_a_sample(monkeypatch):
    with terminal(monkeypatch) as said, Progress().begin(2000, 500) as progress:
        progress._bar.mininterval, progress.note = 0.0, "loss=0.1"
        progress.advance(0.25)
        assert progress._bar.n == 500.25
        progress.advance(1000.0)
        progress.reach(1400.0)  # is no news
        assert progress.done == 1500.25
    shown = "".join(said)
    assert shown.count("\r") >= 3
    assert "500 of 2,000 samples" in shown and "1,500 of 2,000 samples" in shown and " 75%" in shown
    assert "samples/s, loss=0.1]" in shown and "fastscore:" not in shown


def test_more_than_all_does_not_break_the_bar(monkeypatch):
    with terminal(monkeypatch) as said, Progress().begin(2) as progress:
        progress.advance(5)
    assert progress.done == 5 and "2 of 2 samples" in "".join(said)


def test_a_terminal_of_no_known_width_has_lines(clock, monkeypatch):
    with terminal(monkeypatch, columns=0) as said, Progress().begin(10) as progress:
        clock.now = 10.0
        progress.advance(5)
    assert "".join(said).startswith("fastscore: 5 of 10 samples, 0.5/s, 10 s left")


class Broken(io.StringIO):
    def write(self, text):
        raise BrokenPipeError


@pytest.mark.parametrize("stream", [None, Broken(), io.StringIO()], ids=["none", "broken", "closed"])
def test_a_log_that_nobody_reads_ends_nothing(clock, monkeypatch, stream):
    if type(stream) is io.StringIO:
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress().begin(10) as progress:
        clock.now = 20.0
        progress.advance(5)
    assert progress.done == 5


def test_hidden_it_still_counts_for_who_looks_on(clock, capsys):
    seen = []
    with Progress(False, watch=lambda p: seen.append((p.done, p.shards_done, p.ended))).begin(10, 2, 5, 1) as progress:
        clock.now = 20.0
        progress.advance(2.0)
        progress.advance(0.0, 1)
    assert capsys.readouterr().err == ""
    assert seen == [(2, 1, False), (4, 1, False), (4, 2, False), (4, 2, True)]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"), (59.6, "1 min"), (61, "1 min 1 s"), (3600, "1 h"), (7500, "2 h 5 min"), (3605, "1 h"),
        (371000, "4 d 7 h"), (86400, "1 d"),
    ],
)  # fmt: skip
def test_times_in_words(seconds, words):
    assert duration(seconds) == words


def test_followed_shows_calls_or_does_nothing(capsys, clock):
    with followed(False, 5) as reach:
        assert reach is None
    seen = []
    with followed(seen.append, 5) as reach:
        reach(2.5)
    assert seen == [2.5]
    with followed(True, 5) as reach:
        clock.now = 10.0
        reach(5.0)
    assert capsys.readouterr().err.startswith("fastscore: 5 of 5 samples")


def mixture(**settings):
    return fs.Sampler(by_name("mixture"), schedule=fs.VP(), **settings)


ENGINES = {
    "plan": lambda: mixture(steps=5, batch=4),
    "corrector": lambda: mixture(
        solver=fs.PredictorCorrector(fs.ReverseDiffusion(), fs.Langevin(snr=0.16)), steps=4, batch=4
    ),
    "picard": lambda: mixture(steps=8, batch=4, parallel=fs.Picard(window=3)),
    "adaptive": lambda: mixture(solver=fs.Dopri5(rtol=1e-3, atol=1e-3), batch=4),
    "adaptive SDE": lambda: mixture(solver=fs.GottaGoFast(rtol=0.5, atol=0.5), batch=4),
    "traced": lambda: fs.Traced(mixture(steps=5, batch=4)),
}


def rising(seen, n):
    """Check what a run of n samples told of its progress, in micro-batches of 4."""
    assert seen[-1] == n and all(a <= b for a, b in pairwise(seen))
    assert len({v for v in seen if v % 4 and v < n}) >= 4  # within a micro-batch


@pytest.mark.thirds
@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_tells_parts_of_a_micro_batch_and_draws_the_same(name):
    sampler, seen, n = ENGINES[name](), [], 10
    request = getattr(sampler, "sampler", sampler).request(range(n), 3)
    drawn = dict(
        zip(*(torch.cat(v) for v in zip(*sampler.stream(request, progress=seen.append), strict=True)), strict=True)
    )
    rising(seen, n)
    plain = dict(zip(*(torch.cat(v) for v in zip(*sampler.stream(request), strict=True)), strict=True))
    assert {int(k): v.tolist() for k, v in drawn.items()} == {int(k): v.tolist() for k, v in plain.items()}


def test_micro_batches_end_at_whole_samples():
    seen = []
    mixture(steps=3, batch=4).run(range(10), progress=seen.append)
    assert {4.0, 8.0, 10.0} <= set(seen) and len(seen) == 3 * 4  # rows: the start, and three steps


def test_a_flow_and_a_joint_sampler_tell_it_too():
    seen = []
    flow = fs.ProbabilityFlow(by_name("mixture"), schedule=fs.VP(), batch=4)
    flow.encode(torch.zeros(10, 2), progress=seen.append)
    rising(seen, 10)
    seen.clear()
    both = JointModel(lambda u, t, cond=None: u, {"a": Part((2,), fs.VP()), "b": Part((3,), fs.VP())})
    JointSampler(both, solver=fs.Heun(), steps=5, batch=4).run(range(10), progress=seen.append)
    rising(seen, 10)


def test_a_run_of_shards_tells_samples_and_shards(tmp_path):
    sampler = mixture(steps=5, batch=4)
    job = job_of(sampler, sampler.request(range(25)), shard=10, gathered=False).ready()
    beats = []
    tally = work(job, Folder(tmp_path), beat=lambda samples, shards: beats.append((samples, shards)))
    assert sum(samples for samples, _ in beats) == pytest.approx(25)
    assert sum(shards for _, shards in beats) == 3 == tally.drawn
    assert len(beats) > 25 and all(samples >= 0 for samples, _ in beats)
    assert tally.first is not None


@pytest.mark.slow
def test_a_shard_that_is_drawn_again_counts_once(tmp_path, monkeypatch):
    sampler = mixture(steps=5, batch=4)
    job = job_of(sampler, sampler.request(range(10)), shard=10, gathered=False).ready()
    failed, total = [], [0.0]

    def beat(samples, shards):
        assert samples >= 0
        total[0] += samples
        if total[0] > 6 and not failed:
            failed.append(1)
            raise MemoryError

    work(job, Folder(tmp_path), beat=beat)
    assert failed and total[0] == pytest.approx(10)


def test_a_stop_within_a_micro_batch_stops_there(tmp_path):
    sampler = mixture(steps=1000, batch=10)
    job = job_of(sampler, sampler.request(range(10)), shard=10, gathered=False).ready()
    told = []

    def stop(samples, shards):
        told.append(samples)
        raise NonFiniteError("stop")

    with pytest.raises(NonFiniteError):
        work(job, Folder(tmp_path), beat=stop)
    assert len(told) == 1 and told[0] < 1
    assert sampler.run(range(3)).shape == (3, 2)  # and it is free for the next
