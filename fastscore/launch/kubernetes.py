"""An Indexed Job of Kubernetes: a run as pods."""

from __future__ import annotations

import re

from fastscore.launch.parts import HOPELESS, MEANINGS, RETRIES, STOPPED, Parts, indented, mapping, within, yaml

_SIZE = re.compile(r"[1-9]\d{0,8}(m|k|[KMGT]i?)?")


def kubernetes(
    parts: Parts,
    *,
    image: str,
    gpus: int = 1,
    cpus: str | None = None,
    memory: str | None = None,
    namespace: str | None = None,
    service_account: str | None = None,
    secret: str | None = None,
    volume: str | None = None,
    grace: int = 60,
) -> str:
    """Return an Indexed Job: `kubectl apply -f FILE`; Kubernetes 1.29 or newer.

    Args:
        image: a container image with fastscore on its path.
        gpus: of a pod, NVIDIA's; may be 0.
        cpus, memory: of a pod, such as 4 and 32Gi; none are asked for if left out.
        namespace, service_account: the cluster's default if left out.
        secret: name of a Secret whose keys become environment variables, such as those of a bucket.
        volume: CLAIM:/PATH, a PersistentVolumeClaim and where it is mounted; samples may go below that path.
        grace: seconds from SIGTERM to the kill, at least 1.

    Raises:
        ValueError: a value outside these; or samples that would go to the pod's own disk, which ends with it.
    """
    within("gpus", gpus, 0, 64)
    within("grace", grace, 1, 86_400)
    asked = {"cpu": cpus, "memory": memory}
    for key, value in asked.items():
        if value is not None and not _SIZE.fullmatch(value):
            raise ValueError(f"{key} = {value[:60]!r} must be a number, with a unit of Kubernetes' if any (500m, 32Gi)")
    claim, _, path = (volume or "").partition(":")
    if volume is not None and not (claim and path.startswith("/")):
        raise ValueError(f"volume = {volume[:60]!r} must be CLAIM:/PATH, such as samples:/data")
    if not (parts.in_bucket or (path and parts.below(path))):
        raise ValueError(
            f"--out {parts.out[:60]} would be on a pod's own disk, which ends with it; write to s3://, gs:// or az://, "
            "or below the path of a volume CLAIM:/PATH"
        )
    args = [yaml(word.replace("$", "$$")) for word in (*parts.words, "--shard")]
    container = [
        f"- name: {yaml(parts.name)}",
        f"  image: {yaml(image)}",
        '  command: ["fastscore"]',
        "  args:  # Kubernetes reads $(NAME) as a variable and $$ as $",
        *(f"    - {arg}" for arg in (*args, f'"$(JOB_COMPLETION_INDEX)/{parts.count}"')),
        *mapping("resources", {"limits": {"nvidia.com/gpu": gpus or None}, "requests": asked}, "  "),
    ]
    pod = ["restartPolicy: Never", f"terminationGracePeriodSeconds: {grace}"]
    pod += mapping("serviceAccountName", service_account)
    if secret is not None:
        container += ["  envFrom:", "    - secretRef:", f"        name: {yaml(secret)}"]
    if claim:
        container += ["  volumeMounts:", "    - name: run", f"      mountPath: {yaml(path)}"]
        pod += ["volumes:", "  - name: run", "    persistentVolumeClaim:", f"      claimName: {yaml(claim)}"]
    pod += ["containers:", *(f"  {line}" for line in container)]
    metadata = "\n".join(mapping("metadata", {"name": parts.name, "namespace": namespace}))
    return f"""apiVersion: batch/v1
kind: Job
{metadata}
spec:
  completionMode: Indexed
  completions: {parts.count}  # parts of the run
  parallelism: {parts.at_once or parts.count}
  backoffLimitPerIndex: {RETRIES}
  podFailurePolicy:
    rules:
      - action: Ignore  # the node was drained or preempted: started again, and not counted
        onPodConditions:
          - type: DisruptionTarget
            status: "True"
      - action: Ignore  # stopped: what is there stays, and the next pod goes on
        onExitCodes:
          containerName: {yaml(parts.name)}
          operator: In
          values: {list(STOPPED)}
      - action: FailIndex  # {MEANINGS}
        onExitCodes:
          containerName: {yaml(parts.name)}
          operator: In
          values: {list(HOPELESS)}
      # Anything else, such as 5 (storage) and 137 (killed for memory), is counted and tried again, later each time.
  template:
    spec:
{indented(pod, 6)}
"""
