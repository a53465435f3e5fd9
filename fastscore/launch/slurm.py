"""A batch script of Slurm: a run as an array of jobs."""

from __future__ import annotations

from collections.abc import Sequence

from fastscore.launch.parts import MEANINGS, RETRIES, STOPPED, Parts, script, within, word


def slurm(
    parts: Parts,
    *,
    time: str = "4:00:00",
    gpus: int = 1,
    cpus: int = 4,
    memory: str | None = None,
    partition: str | None = None,
    account: str | None = None,
    grace: int = 60,
    setup: Sequence[str] = (),
) -> str:
    """Return a batch script of an array of jobs: `sbatch FILE`.

    Slurm takes an index below its MaxArraySize, 1001 if nobody has raised it.

    Args:
        time: longest time of a job, as Slurm writes it; a job that needs more is queued again and goes on.
        gpus, cpus: of a job; gpus may be 0.
        memory: of a job, such as 32G; the cluster's default if left out.
        partition, account: the cluster's default if left out.
        grace: seconds before the end at which a job is told to stop, 1 .. 65535; Slurm may do so a minute earlier.
        setup: lines of bash before the command, such as "module load cuda".

    Raises:
        ValueError: a value outside these, or one that does not fit a line of Slurm's.
    """
    within("gpus", gpus, 0, 64)
    within("cpus", cpus, 1, 4096)
    within("grace", grace, 1, 65535)
    asked = {"time": time, "mem": memory, "partition": partition, "account": account}
    at_once = "" if parts.at_once is None else f"%{parts.at_once}"
    options = {
        "job-name": parts.name,
        "array": f"0-{parts.count - 1}{at_once}",
        "nodes": 1,
        "ntasks": 1,
        "cpus-per-task": cpus,
        **({"gres": f"gpu:{gpus}"} if gpus else {}),
        **{key: value for key, value in asked.items() if word(key, value)},
        "output": f"{parts.name}-%A-%a.log",
        "open-mode": "append",
        "signal": f"B:TERM@{grace}",
    }
    lines = "\n".join(f"#SBATCH --{key}={value}" for key, value in options.items())
    return f"""#!/bin/bash
{lines}
#SBATCH --requeue

# A constant: when only some parts are submitted again (--array=3,7), SLURM_ARRAY_TASK_COUNT is another number.
N={parts.count}

# Slurm sends SIGTERM to this shell, {grace} s before the job's time is over. It goes on to fastscore, which is no step
# under srun: srun answers SIGTERM by killing what it runs.
child= stopped= again=
trap 'stopped=1; [ -n "$child" ] && kill -TERM "$child" 2>/dev/null' TERM

{script(setup)}code=75
if [ -z "$stopped" ]; then
    {parts.shell("$SLURM_ARRAY_TASK_ID")} &
    child=$!
    [ -n "$stopped" ] && kill -TERM "$child" 2>/dev/null  # it came between the two lines above
    wait "$child"
    code=$?
    while [ -n "$stopped" ]; do  # the signal ended the wait, and not yet fastscore
        stopped=
        wait "$child"
        code=$?
    done
fi

# 0: this part is done. What would only fail again stays failed: {MEANINGS}.
case "$code" in
    {" | ".join(map(str, STOPPED))}) again=1 ;;  # stopped: what is there stays, and the next start goes on
    5) [ "${{SLURM_RESTART_COUNT:-0}}" -lt {RETRIES} ] && again=1 ;;  # storage: perhaps not for long, or not elsewhere
esac
[ -n "$again" ] && scontrol requeue "$SLURM_JOB_ID"
exit "$code"
"""
