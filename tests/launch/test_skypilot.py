"""The task of SkyPilot: its script run here by bash, and the file read by SkyPilot where it is installed."""

from __future__ import annotations

import pytest
from yaml import safe_load as load

from fastscore.launch.parts import RETRIES, Parts
from fastscore.launch.skypilot import INSTALL, skypilot

from .conftest import HOSTILE

SAMPLE = ("sample", "fashion", "--out", "s3://bucket/run")


def test_a_task_with_everything_and_one_with_nothing():
    setup = ["  x='a: b'  # c", "source venv/bin/activate"]
    task = load(skypilot(Parts(SAMPLE, 9, name="night"), accelerators="A100:1", cpus="4+", memory="32+", setup=setup))
    assert set(task) == {"name", "resources", "setup", "run"} and task["name"] == "night"
    assert task["setup"].splitlines() == setup
    recovery = {"recover_on_exit_codes": [75, 143]}
    assert task["resources"] == {
        "accelerators": "A100:1", "cpus": "4+", "memory": "32+", "use_spot": True, "job_recovery": recovery,
    }  # fmt: skip
    task = load(skypilot(Parts(SAMPLE, 9), spot=False))
    assert task["resources"] == {"use_spot": False, "job_recovery": recovery}
    assert task["setup"].splitlines() == list(INSTALL)


def test_every_word_arrives(shell):
    run = load(skypilot(Parts((*SAMPLE, *HOSTILE), 100)))["run"]
    assert shell.run(run, SKYPILOT_JOB_RANK="7") == 0
    assert shell.calls("fastscore") == [[*SAMPLE, *HOSTILE, "--shard", "7/100"]]
    assert not (shell.folder / "hit").exists()


@pytest.mark.parametrize("code", [0, 2, 3, 4, 70, 75, 137, 143])
def test_exit_codes_are_the_jobs(shell, code):
    assert shell.run(load(skypilot(Parts(SAMPLE, 9)))["run"], SKYPILOT_JOB_RANK="0", CODES=str(code)) == code
    assert len(shell.calls("fastscore")) == 1


@pytest.mark.slow
def test_storage_is_tried_again_for_some_time(shell):
    run = load(skypilot(Parts(SAMPLE, 9)))["run"]
    assert shell.run(run, SKYPILOT_JOB_RANK="0", CODES="5 5 75") == 75
    assert [call for (call,) in shell.calls("sleep")] == ["30", "60"]
    assert shell.run(run, SKYPILOT_JOB_RANK="0", CODES="5") == 5
    assert len(shell.calls("fastscore")) == 3 + RETRIES + 1


def test_a_task_that_is_launched_without_a_rank_says_how(shell, capfd):
    run = load(skypilot(Parts(SAMPLE, 9)))["run"]
    assert shell.run(run) != 0 and shell.calls("fastscore") == []
    assert "sky jobs launch --num-jobs 9" in capfd.readouterr().err


@pytest.mark.parametrize(("out", "given"), [("/data/run", {}), ("run", {}), ("s3://b", {"accelerators": "A100: 1"})])
def test_what_cannot_work_is_refused(out, given):
    with pytest.raises(ValueError, match=r"own disk|must be one word"):
        skypilot(Parts(("sample", "m", "--out", out), 3), **given)


@pytest.mark.slow
@pytest.mark.nightly
def test_skypilot_reads_the_task():
    sky = pytest.importorskip("sky", reason="pip install skypilot: it reads the task")
    text = skypilot(Parts((*SAMPLE, *HOSTILE), 9), accelerators="A100:1", cpus="4+", memory="32+")
    task = sky.Task.from_yaml_config(load(text))
    (resources,) = task.resources
    assert task.run == load(text)["run"] and task.num_nodes == 1 and resources.use_spot
    assert resources.job_recovery["recover_on_exit_codes"] == [75, 143]
    from sky.utils import common_utils, schemas  # pyright: ignore[reportMissingImports]

    wrong = load(text.replace("use_spot", "use_spots"))
    check = common_utils.validate_schema
    check(load(text), schemas.get_task_schema(), "task: ")
    check(load(text)["resources"], schemas.get_resources_schema(), "resources: ")
    with pytest.raises(Exception, match="use_spots"):
        check(wrong["resources"], schemas.get_resources_schema(), "resources: ")
