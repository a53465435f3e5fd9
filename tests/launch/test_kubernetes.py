"""The Indexed Job: against the rules of its schema, and its words as Kubernetes expands them."""

from __future__ import annotations

import re

import pytest
from yaml import safe_load as load

from fastscore.launch.kubernetes import kubernetes
from fastscore.launch.parts import MOST, RETRIES, Parts

from .conftest import HOSTILE

SAMPLE = ("sample", "fashion", "--out", "s3://bucket/run")
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def expanded(text: str, variables: dict[str, str]) -> str:
    """Return a word of args as the container gets it: $$ is $, $(NAME) a variable if there is one, all else stays."""

    def value(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else variables.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", value, text)


def only(mapping: dict, *keys: str) -> None:
    assert set(mapping) <= set(keys), f"unknown: {set(mapping) - set(keys)}"


def check(job: dict) -> dict:
    """Check a Job by the rules of batch/v1, as its reference says them; return its container."""
    only(job, "apiVersion", "kind", "metadata", "spec")
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    only(job["metadata"], "name", "namespace")
    spec = job["spec"]
    only(spec, "completionMode", "completions", "parallelism", "backoffLimitPerIndex", "podFailurePolicy", "template")
    assert spec["completionMode"] == "Indexed"  # which backoffLimitPerIndex needs
    assert 1 <= spec["parallelism"] <= spec["completions"] <= 100_000 and spec["backoffLimitPerIndex"] >= 0
    assert LABEL.fullmatch(f"{job['metadata']['name']}-{spec['completions'] - 1}")  # the host name of a pod
    pod = spec["template"]["spec"]
    only(pod, "restartPolicy", "terminationGracePeriodSeconds", "serviceAccountName", "containers", "volumes")
    assert pod["restartPolicy"] == "Never"  # which podFailurePolicy and backoffLimitPerIndex need
    (container,) = pod["containers"]
    only(container, "name", "image", "command", "args", "resources", "envFrom", "volumeMounts")
    assert all(isinstance(arg, str) for arg in container["args"])
    assert container["image"] and LABEL.fullmatch(container["name"])
    rules = spec["podFailurePolicy"]["rules"]
    assert 1 <= len(rules) <= 20
    for rule in rules:
        assert rule["action"] in ("Ignore", "FailIndex", "FailJob", "Count")
        assert ("onExitCodes" in rule) != ("onPodConditions" in rule)
        for condition in rule.get("onPodConditions", []):
            assert condition == {"type": "DisruptionTarget", "status": "True"}
        if codes := rule.get("onExitCodes"):
            only(codes, "containerName", "operator", "values")
            assert codes["containerName"] == container["name"] and codes["operator"] == "In"
            assert codes["values"] == sorted(set(codes["values"])) and 0 not in codes["values"]
    return container


def action(job: dict, code: int) -> str:
    """Return what becomes of a pod that ends with a code."""
    rules = job["spec"]["podFailurePolicy"]["rules"]
    found = (rule["action"] for rule in rules if code in rule.get("onExitCodes", {}).get("values", []))
    return next(found, "Count")


def test_a_job_with_everything():
    text = kubernetes(
        Parts(SAMPLE, 100, 8, "night"), image="registry/fast:1", gpus=2, cpus="500m", memory="32Gi", namespace="lab",
        service_account="writer", secret="s3-keys", volume="samples:/data", grace=90,
    )  # fmt: skip
    job = load(text)
    container = check(job)
    assert job["metadata"] == {"name": "night", "namespace": "lab"}
    assert (job["spec"]["completions"], job["spec"]["parallelism"]) == (100, 8)
    assert job["spec"]["backoffLimitPerIndex"] == RETRIES
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 2}, "requests": {"cpu": "500m", "memory": "32Gi"}}
    assert container["envFrom"] == [{"secretRef": {"name": "s3-keys"}}]
    pod = job["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == "writer" and pod["terminationGracePeriodSeconds"] == 90
    (volume,), (mount,) = pod["volumes"], container["volumeMounts"]
    assert volume == {"name": mount["name"], "persistentVolumeClaim": {"claimName": "samples"}}
    assert mount["mountPath"] == "/data"


def test_a_job_with_nothing():
    job = load(kubernetes(Parts(SAMPLE, MOST, name="n" * 50), image="fast", gpus=0))
    container = check(job)
    assert not {"resources", "envFrom", "volumeMounts"} & set(container)
    assert job["spec"]["parallelism"] == MOST and job["metadata"] == {"name": "n" * 50}
    assert not {"serviceAccountName", "volumes"} & set(job["spec"]["template"]["spec"])


def test_exit_codes():
    job = load(kubernetes(Parts(SAMPLE, 3), image="fast"))
    wanted = {75: "Ignore", 143: "Ignore", 5: "Count", 137: "Count", 1: "Count"} | dict.fromkeys(
        (2, 3, 4, 70), "FailIndex"
    )
    assert {code: action(job, code) for code in wanted} == wanted
    first = job["spec"]["podFailurePolicy"]["rules"][0]  # before exit codes: a drained pod may end with any
    assert first["action"] == "Ignore" and "onPodConditions" in first


def test_every_word_arrives():
    job = load(kubernetes(Parts((*SAMPLE, *HOSTILE), 100), image=HOSTILE[0], secret=HOSTILE[1], namespace=HOSTILE[8]))
    container = check(job)
    variables = {"JOB_COMPLETION_INDEX": "7", "HOME": "/root"}
    assert container["command"] == ["fastscore"]
    assert [expanded(arg, variables) for arg in container["args"]] == [*SAMPLE, *HOSTILE, "--shard", "7/100"]
    assert (container["image"], container["envFrom"][0]["secretRef"]["name"]) == HOSTILE[:2]


@pytest.mark.parametrize(
    ("out", "given", "said"),
    [
        ("out", {}, "would be on a pod's own disk"),
        ("/data/run", {}, "would be on a pod's own disk"),
        ("/database", {"volume": "c:/data"}, "would be on a pod's own disk"),
        ("s3://b/x", {"volume": "claim"}, "must be CLAIM:/PATH"),
        ("s3://b/x", {"volume": ":/data"}, "must be CLAIM:/PATH"),
        ("s3://b/x", {"volume": "claim:data"}, "must be CLAIM:/PATH"),
        ("s3://b/x", {"gpus": -1}, "gpus = -1"),
        ("s3://b/x", {"grace": 0}, "grace = 0"),
        ("s3://b/x", {"cpus": "many"}, "cpu = 'many'"),
        ("s3://b/x", {"memory": "32 GB"}, "memory = '32 GB'"),
    ],
)
def test_what_cannot_work_is_refused(out, given, said):
    with pytest.raises(ValueError, match=said):
        kubernetes(Parts(("sample", "m", "--out", out), 3), image="fast", **given)


def test_a_volume_holds_the_run():
    check(load(kubernetes(Parts(("sample", "m", "--out", "/data/run"), 3), image="fast", volume="c:/data")))


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("version", ["1.29", "1.33", "1.35"])
def test_published_schemas_agree(version):
    reason = "pip install kubernetes-validate: the schemas that Kubernetes publishes"
    validate = pytest.importorskip("kubernetes_validate", reason=reason).validate
    full = kubernetes(Parts((*SAMPLE, *HOSTILE), 100, 8), image="a", secret="s", volume="c:/data", service_account="w")
    for text in (full, kubernetes(Parts(SAMPLE, 3), image="a", gpus=0)):
        validate(load(text), version, strict=True)
    with pytest.raises(Exception, match="restartPolic"):
        validate(load(full.replace("restartPolicy", "restartPolicies")), version, strict=True)
