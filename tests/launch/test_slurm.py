"""The batch script, run here by bash as a job of an array, and by Slurm where it is installed."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time

import pytest

from fastscore.launch.parts import RETRIES, Parts
from fastscore.launch.slurm import slurm

from .conftest import HOSTILE

SAMPLE = ("sample", "fashion", "--out", "run")
JOB = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_JOB_ID": "4711", "SLURM_ARRAY_TASK_COUNT": "2"}


def options(text: str) -> dict[str, str]:
    """Options of the script, as sbatch finds them: before the first line that is no comment."""
    head = re.match(r"#!/bin/bash\n((?:#.*\n)*)", text)
    return dict(re.findall(r"#SBATCH --([a-z-]+)=?(.*)", head[1])) if head else {}


def test_the_options_of_the_array():
    text = slurm(Parts(SAMPLE, 100, 8, "night"), gpus=2, memory="32G", partition="a100", account="phys", grace=90)
    assert options(text) == {
        "job-name": "night", "array": "0-99%8", "nodes": "1", "ntasks": "1", "cpus-per-task": "4", "gres": "gpu:2",
        "time": "4:00:00", "mem": "32G", "partition": "a100", "account": "phys", "output": "night-%A-%a.log",
        "open-mode": "append", "signal": "B:TERM@90", "requeue": "",
    }  # fmt: skip
    few = options(slurm(Parts(SAMPLE, 1), gpus=0))
    assert few["array"] == "0-0" and not {"gres", "mem", "partition", "account"} & set(few)
    assert "\n#SBATCH --requeue\n" in text


@pytest.mark.parametrize("given", [{"gpus": -1}, {"cpus": 0}, {"grace": 0}, {"grace": 65536}, {"time": "1 hour"}])
def test_what_does_not_fit_is_refused(given):
    with pytest.raises(ValueError, match=next(iter(given))):
        slurm(Parts(SAMPLE, 2), **given)
    with pytest.raises(ValueError, match="partition"):
        slurm(Parts(SAMPLE, 2), partition="a\n#SBATCH --wrap=x")


def test_every_word_arrives_and_the_number_of_parts_is_the_files(shell):
    assert shell.run(slurm(Parts((*SAMPLE, *HOSTILE), 100)), **JOB) == 0
    assert shell.calls("fastscore") == [[*SAMPLE, *HOSTILE, "--shard", "7/100"]]
    assert not (shell.folder / "hit").exists()


@pytest.mark.thirds
@pytest.mark.parametrize(
    ("code", "restarts", "again"),
    [
        (0, None, False), (2, None, False), (3, None, False), (4, None, False), (70, None, False), (137, None, False),
        (75, None, True), (75, 1000, True), (143, None, True), (5, None, True), (5, RETRIES - 1, True),
        (5, RETRIES, False), (127, None, False),
    ],
)  # fmt: skip
def test_exit_codes(shell, code, restarts, again):
    environment = JOB | {"CODES": str(code), "again": "1", "stopped": "1", "code": "9"}
    environment |= {} if restarts is None else {"SLURM_RESTART_COUNT": str(restarts)}
    assert shell.run(slurm(Parts(SAMPLE, 9)), **environment) == code
    assert len(shell.calls("fastscore")) == 1
    assert shell.calls("scontrol") == ([["requeue", "4711"]] if again else [])


@pytest.mark.slow
def test_sigterm_reaches_fastscore_and_its_code_is_waited_for(shell):
    assert shell.stop(slurm(Parts(SAMPLE, 9)), **JOB) == 75
    assert (shell.folder / "told").read_text() == "TERM "
    assert shell.calls("scontrol") == [["requeue", "4711"]]


@pytest.mark.slow
def test_sigterm_before_fastscore_starts(shell):
    setup = ["touch ready; command -p sleep 0.5"]
    assert shell.stop(slurm(Parts(SAMPLE, 9), setup=setup), **JOB) == 75
    assert shell.calls("fastscore") == [] and shell.calls("scontrol") == [["requeue", "4711"]]


def test_setup_is_bash_of_the_users(shell):
    assert shell.run(slurm(Parts(SAMPLE, 9), setup=["export CODES=4", "cd ."]), **JOB) == 4


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster of this machine alone: its configuration file."""
    for program in ("slurmctld", "slurmd", "sbatch", "scontrol"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program}: apt-get install slurmctld slurmd slurm-client")
    if os.getuid() != 0:
        pytest.skip("only root can start a cluster")
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            ports.append(free.getsockname()[1])
    config = folder / "slurm.conf"
    config.write_text(
        f"ClusterName=one\nSlurmctldHost=localhost\nSlurmctldPort={ports[0]}\nSlurmdPort={ports[1]}\n"
        "AuthType=auth/none\nCredType=cred/none\nSlurmUser=root\nSlurmdUser=root\n"
        f"StateSaveLocation={folder}/state\nSlurmdSpoolDir={folder}/spool\n"
        f"SlurmctldPidFile={folder}/ctld.pid\nSlurmdPidFile={folder}/d.pid\n"
        f"SlurmctldLogFile={folder}/ctld.log\nSlurmdLogFile={folder}/d.log\n"
        "ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nReturnToService=2\nKillWait=5\n"
        "SelectType=select/cons_tres\nSelectTypeParameters=CR_CPU\n"
        f"NodeName=localhost CPUs={os.cpu_count()} State=UNKNOWN\nPartitionName=all Nodes=ALL Default=YES State=UP\n"
    )
    daemons = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for command in (["slurmctld", "-D", "-f", config], ["slurmd", "-D", "-f", config, "-N", "localhost"])
    ]
    try:
        deadline = time.monotonic() + 60
        while " idle " not in ask(config, "sinfo", "-h", "-o", " %t "):
            if time.monotonic() > deadline or any(daemon.poll() is not None for daemon in daemons):
                pytest.skip(f"Slurm does not start here: {(folder / 'ctld.log').read_text()[-300:]}")
            time.sleep(0.2)
        yield config
    finally:
        for daemon in daemons:
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(30)


def ask(config, *command: object) -> str:
    environment = os.environ | {"SLURM_CONF": str(config)}
    return subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True).stdout


@pytest.mark.slow
@pytest.mark.nightly
def test_slurm_itself_stops_and_requeues(cluster, shell):
    """Told to stop in its first life, each job of the array is queued again and done in its second."""
    setup = [
        f"export PATH={shell.programs}:$PATH",
        '[ -z "${SLURM_RESTART_COUNT:-}" ] && export WAITS=1',
        "unset CODES",
    ]
    (shell.programs / "scontrol").unlink()  # Slurm's own
    file = shell.folder / "job.sh"
    file.write_text(slurm(Parts(SAMPLE, 2, name="two"), time="5", gpus=0, cpus=1, setup=setup))
    assert "to start at" in ask(cluster, "bash", "-c", f"sbatch --test-only {file} 2>&1")
    number = ask(cluster, "sbatch", "-D", shell.folder, "--parsable", file).strip()
    assert number.isdecimal()

    def wait(done) -> str:
        deadline = time.monotonic() + 90
        while not done(state := ask(cluster, "squeue", "-h", "-t", "all", "-j", number, "-o", "%K %T %r")):
            assert time.monotonic() < deadline, state
            time.sleep(0.2)
        return state

    wait(lambda _: len(shell.calls("fastscore")) == 2 and (shell.folder / "ready").exists())
    ask(cluster, "scancel", "--batch", "--signal=TERM", number)
    wait(lambda state: state.count("PENDING BeginTime") == 2)  # Slurm waits two minutes; nobody here has to
    for task in (0, 1):
        ask(cluster, "scontrol", "update", f"JobId={number}_{task}", "StartTime=now")
    wait(lambda state: state.count("COMPLETED") == 2)
    parts = [call[-1] for call in shell.calls("fastscore")]
    assert sorted(parts) == ["0/2", "0/2", "1/2", "1/2"]
    assert (shell.folder / "told").read_text() == "TERM TERM "
