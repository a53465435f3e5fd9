"""A run as a step of a pipeline: parts by rank, pickled, called again; and under datatrove itself."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

import fastscore as fs
from fastscore.launch.steps import Step
from fastscore.model.analytic import by_name
from fastscore.output.store.job import job_of
from fastscore.output.store.place import place_of
from fastscore.output.store.work import present, work

SHARDS = 7


def opened(run):
    sampler = fs.Sampler(by_name("mixture"), schedule=fs.VP(), steps=3, batch=10)
    return job_of(sampler, sampler.request(range(65), 3), shard=10, gathered=False), place_of(run)


def contents(run: Path):
    return {p.relative_to(run).as_posix(): p.read_bytes() for p in run.rglob("*.npz")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    run = tmp_path_factory.mktemp("undisturbed")
    work(*opened(run))
    assert len(contents(run)) == SHARDS
    return contents(run)


@pytest.mark.parametrize("world_size", [1, 3, 20])
def test_ranks_draw_the_run(tmp_path, undisturbed, world_size):
    job, place = opened(tmp_path)
    step = Step(opened, str(tmp_path))
    for rank in reversed(range(world_size)):
        before = present(place, job.manifest)
        assert step(None, rank, world_size) is None
        assert SHARDS // world_size <= len(present(place, job.manifest) - before) <= -(-SHARDS // world_size)
    assert contents(tmp_path) == undisturbed
    step(rank=0)  # all is there
    assert contents(tmp_path) == undisturbed


def test_data_of_other_steps_passes_through(tmp_path):
    data = iter("abc")
    assert Step(opened, str(tmp_path))(data, 1, 7) is data and list(data) == ["a", "b", "c"]


@pytest.mark.parametrize(("rank", "world_size"), [(-1, 2), (2, 2), (0, 0)])
def test_there_is_no_such_part(tmp_path, rank, world_size):
    with pytest.raises(ValueError, match=f"rank = {rank}"):
        Step(opened, str(tmp_path))(None, rank, world_size)
    assert not list(tmp_path.iterdir())


def test_it_can_be_pickled():
    step = Step(fs.load_model, "s3://bucket/run")  # any function of a module
    assert pickle.loads(pickle.dumps(step)) == step


@pytest.mark.slow
@pytest.mark.nightly
def test_datatrove_runs_it(tmp_path, undisturbed):
    executor = pytest.importorskip(
        "datatrove.executor", reason="pip install datatrove: it runs the step"
    ).LocalPipelineExecutor
    run, marks = tmp_path / "run", tmp_path / "marks"

    def pipeline():
        return executor([Step(opened, str(run))], tasks=3, workers=1, logging_dir=str(marks))

    pipeline().run()
    assert contents(run) == undisturbed and len(list((marks / "completions").iterdir())) == 3
    (run / "shards/0000/0000004.npz").unlink()
    pipeline().run()  # datatrove skips what it has marked
    assert set(undisturbed) - set(contents(run)) == {"shards/0000/0000004.npz"}
    (marks / "completions/00001").unlink()
    pipeline().run()
    assert contents(run) == undisturbed
