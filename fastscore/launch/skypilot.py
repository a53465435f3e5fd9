"""A task of SkyPilot: a run as managed jobs."""

from __future__ import annotations

from collections.abc import Sequence

from fastscore.launch.parts import RETRIES, STOPPED, Parts, indented, mapping, script, word, yaml

INSTALL = ("python3 -m pip install 'fastscore[objects]'",)


def skypilot(
    parts: Parts,
    *,
    accelerators: str | None = None,
    cpus: str | None = None,
    memory: str | None = None,
    spot: bool = True,
    setup: Sequence[str] = (),
) -> str:
    """Return a task of which every part is a managed job of its own: `sky jobs launch --num-jobs N FILE`.

    Args:
        accelerators: of a job, such as A100:1; none if left out.
        cpus, memory: of a job, such as 4+ and 32+; SkyPilot's default if left out.
        spot: whether on machines that may be taken away.
        setup: lines of bash that make fastscore available; left out: pip install it.

    Raises:
        ValueError: a value that is not one word; or samples that would go to a machine's own disk.
    """
    if not parts.in_bucket:
        raise ValueError(f"--out {parts.out[:60]} would be on a machine's own disk; write to s3://, gs:// or az://")
    asked = {"accelerators": accelerators, "cpus": cpus, "memory": memory}
    asked = {key: word(key, value) for key, value in asked.items()}
    resources = {**asked, "use_spot": spot, "job_recovery": {"recover_on_exit_codes": list(STOPPED)}}
    run = f"""# A constant: the number of a part means nothing without it.
N={parts.count}
rank=${{SKYPILOT_JOB_RANK:?is not set: launch this file with: sky jobs launch --num-jobs $N FILE}}

# Stopped, the job starts again, as when the machine is lost. 5, storage, is tried again here: SkyPilot cannot count.
for pause in {" ".join(str(30 * (k + 1)) for k in range(RETRIES))} 0; do
    code=0
    {parts.shell("$rank")} || code=$?
    [ "$code" -eq 5 ] && sleep "$pause" || break
done
exit "$code"
"""
    body = "\n".join(mapping("resources", resources))
    return f"""# sky jobs launch --num-jobs {parts.count} THIS_FILE
name: {yaml(parts.name)}
{body}
setup: |2
{indented(script(setup or INSTALL), 2)}
run: |2
{indented(run, 2)}
"""
