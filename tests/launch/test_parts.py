"""The command of a run in parts: what is refused, and how its words come through bash and YAML."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yaml import safe_load as load

from fastscore.launch.parts import MOST, Parts, bash, mapping, script, word, yaml

from .conftest import HOSTILE

SAMPLE = ("sample", "fashion", "-n", "10M", "--out", "s3://bucket/run")
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)


@pytest.mark.parametrize(
    ("words", "settings", "said"),
    [
        (SAMPLE, {"count": 0}, "parts = 0 must be in 1 .. 100,000"),
        (SAMPLE, {"count": MOST + 1}, "parts = 100001 must be"),
        (SAMPLE, {"at_once": 0}, "at once = 0 must be in 1 .. 3"),
        (SAMPLE, {"at_once": 4}, "at once = 4 must be in 1 .. 3"),
        *((SAMPLE, {"name": name}, "name = ") for name in ("", "A", "1a", "a-", "a_b", "a\n", "a" * 51, "é")),
        ((), {}, "must be `sample MODEL"),
        (("plan", "--out", "x"), {}, "must be `sample MODEL"),
        (SAMPLE[:-2], {}, "add --out"),
        (SAMPLE[:-1], {}, "add --out"),
        ((*SAMPLE, "--shard", "0/4"), {}, "has --shard"),
        ((*SAMPLE, "--shard=0/4"), {}, "has --shard"),
        ((*SAMPLE, "--fresh"), {}, "has --fresh, which would begin the run anew"),
        ((*SAMPLE, "--overwrite"), {}, "has --overwrite, which would begin the run anew"),
        ((*SAMPLE, "--png"), {}, "has --png, which belongs to a run of one command"),
        ((*SAMPLE, "--trajectory"), {}, "has --trajectory, which belongs to a run of one command"),
        ((*SAMPLE, "--manifest-only"), {}, "has --manifest-only, which draws nothing"),
        ((*SAMPLE, "a\0"), {}, "holds what no file of text can"),
        ((*SAMPLE, "a\udc80"), {}, "holds what no file of text can"),
    ],
)
def test_what_cannot_be_run_in_parts_is_refused(words, settings, said):
    with pytest.raises(ValueError, match=said.replace("(", "\\(")):
        Parts(words, **{"count": 3, **settings})


@pytest.mark.parametrize(
    ("out", "in_bucket", "below"),
    [
        ("s3://b/x", True, False), ("GS://b/x", True, False), ("az://b/x", True, False), ("out", False, False),
        ("/data", False, True), ("/data/x/", False, True), ("file:///data/x", False, True), ("/database", False, False),
        ("/data/../x", False, False), ("data/x", False, False), ("~/data", False, False), ("s3:/data", False, False),
    ],
)  # fmt: skip
def test_where_samples_go(out, in_bucket, below):
    for words in (("sample", "m", "--out", out), ("sample", "m", f"--out={out}"), ("sample", "--outdir", out, "m")):
        parts = Parts(words, 1)
        assert (parts.out, parts.in_bucket, parts.below("/data/")) == (out, in_bucket, below)
    assert Parts(("sample", "--out", "first", "--out", out), 1).out == out  # as click takes it


def test_bash_reads_every_word_in_any_locale(tmp_path):
    words = " ".join(map(bash, HOSTILE))
    assert words.isprintable()
    for locale in ("C", "C.UTF-8"):
        done = subprocess.run(
            ["bash", "-c", f"printf '%s\\0' {words}"], cwd=tmp_path, capture_output=True, env={"LC_ALL": locale}
        )
        assert done.stdout.decode().split("\0")[:-1] == list(HOSTILE)
    assert not list(tmp_path.iterdir())


@given(st.lists(TEXT, min_size=1, max_size=30))
def test_bash_reads_any_words(words):
    text = f"printf '%s\\0' {' '.join(map(bash, words))}"
    done = subprocess.run(["bash", "-c", text], capture_output=True, env={"LC_ALL": "C"})
    assert done.stdout.decode().split("\0")[:-1] == words


@given(TEXT)
@example("\ufeff\u2028\x85\x7f")
@example("\U0001f600\\\"'")
def test_yaml_reads_any_text(text):
    assert yaml(text).isprintable()
    assert load(f"- {yaml(text)}\n- key: {yaml(text)}") == [text, {"key": text}]


def test_a_mapping_leaves_out_what_is_not_given():
    tree = {"a": 1, "b": None, "c": {"d": None}, "e": {"f": "1", "g": True, "h": [2, 3]}}
    assert mapping("top", tree) == ["top:", "  a: 1", "  e:", '    f: "1"', "    g: true", "    h: [2, 3]"]
    assert mapping("top", {}) == mapping("top", None) == []


def test_values_of_lines_are_one_word_or_one_line():
    assert word("time", None) is None and word("time", "1-12:00:00") == "1-12:00:00"
    for wrong in ("", "a b", "a\n#SBATCH --wrap=x", "a;b", "$x", "é"):
        with pytest.raises(ValueError, match="time = "):
            word("time", wrong)
    assert script(["module load cuda", "x='a b'"]) == "module load cuda\nx='a b'\n"
    with pytest.raises(ValueError, match="setup = "):
        script(["a\nb"])
