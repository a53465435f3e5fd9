"""fastscore report as a user meets it: a run, a bench or a model as one page, and words where that cannot be."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from pages import HOSTILE, check

import fastscore as fs
from fastscore.engine.trajectory import Traced
from fastscore.output.run import draw
from fastscore.report.chart import number
from fastscore.report.schedule import schedule_of

ROOT = Path(__file__).parents[2]
POINTS = ("sample", "analytic:mixture", "-n", "30", "--steps", "4", "--batch", "30", "--quiet")
SCREENS = 360, 800, 1600


def titles(page) -> list[str]:
    return page.words("h2")


def drawn_in_python(out: Path, shape: tuple[int, ...], steps: int = 2, n: int = 3, **settings: str) -> Path:
    """A run without a command, of a network that says 0."""
    model = fs.ScoreModel(lambda u, c, cond: torch.zeros_like(u), shape, fs.VP())
    traced = Traced(fs.Sampler(model, steps=steps, batch=n))
    draw(traced, traced.sampler.request(range(n)), out, further=traced.write, further_bytes=1 << 20, settings=settings)
    return out


def test_a_run_of_points_with_its_trajectory(run, tmp_path):
    out = tmp_path / "a"
    assert run(*POINTS, "--trajectory", "--out", out)[0] == 0
    (out / "quality.json").write_text(json.dumps({"sliced W2": 0.123, "floor": {"of data": [0.1, None]}}))
    (out / "way.prom").write_text("# HELP a b\nfastscore_samples 30\n")
    code, said, _ = run("report", out)
    assert (code, said.split(" (")[0]) == (0, str(out / "report.html"))
    page, record = check(out / "report.html"), json.loads((out / "run.json").read_text())
    assert page.words("h1") == ["30 samples of analytic:mixture"]
    assert titles(page) == [
        "Samples", "From noise to samples", "Schedule", "Plan", "Speed, and where the time went", "Quality",
        "Environment", "To repeat it",
    ]  # fmt: skip
    assert len(page.all("img")) == 5
    with np.load(out / "trajectory.npz") as saved:
        assert any(f"After step 2 of 4: t = {saved['times'][2]:.4g}, " in line for line in page.words("p"))
    assert page.all("input")[0]["max"] == "4"
    cells = page.words("td")
    assert record["plan_sha256"] in cells and record["manifest"]["what"]["model"] in cells
    assert {"sliced W2", "0.123", "floor.of data", "0.1, none", "fastscore_samples", "30"} <= set(cells)
    assert page.words("code")[0].startswith("fastscore sample analytic:mixture -n 30 --steps 4 --batch 30 ")
    assert any(text.startswith("Coefficients of") for text in page.words("figcaption"))
    rate = record["timings"]["samples_per_s"]
    assert page.words("dd")[page.words("dt").index("network evaluations a second")] == number(4 * rate)
    assert "another plan" not in " ".join(page.words("p"))
    (out / "run.json").write_text(json.dumps(record | {"plan_sha256": "0" * 64}))
    assert run("report", out / "run.json", "--quiet")[0] == 2
    assert run("report", out / "run.json")[0] == 0  # in place of the one that is there
    assert "makes another plan than the one that drew the run" in " ".join(check(out / "report.html").words("p"))
    (tmp_path / "mine.html").write_text("mine")
    code, _, error = run("report", out, "--out", tmp_path / "mine.html")
    assert code == 2 and "no report" in error and (tmp_path / "mine.html").read_text() == "mine"
    assert run("report", out, "--out", tmp_path)[0] == 2
    assert run("report", out, "--out", tmp_path / "new.html")[0] == 0 and (tmp_path / "new.html").exists()


def test_a_run_of_images_from_python_and_a_hostile_name(run, tmp_path):
    out = drawn_in_python(tmp_path / "a", (3, 5, 4), model=HOSTILE)
    assert run("report", out)[0] == 0
    page = check(out / "report.html")
    name = re.sub(r"[\0\x1b\ud800]", "\ufffd", HOSTILE)
    assert page.words("h1") == [f"3 samples of {name}"]
    assert len(page.all("img")) == 1 + 3 and all(img["src"].startswith("data:image/png") for img in page.all("img"))
    assert "It was drawn from Python: print(sampler.plan) shows its plan there." in page.words("p")
    assert "Schedule" in titles(page)


@pytest.mark.slow
def test_a_run_of_an_adaptive_solver(run, tmp_path):
    out = tmp_path / "a"
    words = ("--solver", "dopri5", "--rtol", "1e-2", "--atol", "1e-2", "--trajectory", "--quiet", "--out", out)
    assert run("sample", "analytic:gaussian", "-n", "6", "--schedule", "vp", *words)[0] == 0
    assert run("report", out)[0] == 0
    page = check(out / "report.html")
    with np.load(out / "trajectory.npz") as saved:
        assert len(page.all("img")) == len(saved["times"])
    assert "Steps" in titles(page) and "Plan" not in titles(page) and "nfe_mean" in page.words("dt")


def test_what_is_damaged_or_not_there_is_said(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = drawn_in_python(tmp_path / "a", (2,))

    def refused(*words: object) -> str:
        code, _, error = run("report", *words)
        assert code == 2 and error.startswith("fastscore: error: ") and "Traceback" not in error
        return error

    for text in ("", "{", "[]", "[" * 5000, '{"manifest": 3}', '{"manifest": {"manifest": 1}}'):
        broken = shutil.copytree(out, tmp_path / "broken", dirs_exist_ok=True)
        (broken / "run.json").write_text(text)
        assert "run.json" in refused(broken)
    shutil.copy(out / "run.json", broken)
    (broken / "samples.npz").write_bytes((out / "samples.npz").read_bytes()[:-40])
    assert "samples.npz cannot be read" in refused(broken)
    (broken / "samples.npz").unlink()
    assert "holds no samples.npz" in refused(broken)
    shutil.copy(out / "samples.npz", broken)
    for damage in (b"", b"PK", (out / "samples.npz").read_bytes(), (out / "trajectory.npz").read_bytes()[:-40]):
        (broken / "trajectory.npz").write_bytes(damage)
        assert run("report", broken)[0] == 0
        assert any("trajectory.npz" in line for line in check(broken / "report.html").words("p"))
    (broken / "quality.json").write_text("{")
    record = json.loads((broken / "run.json").read_text()) | {
        "timings": 3,
        "settings": [],
        "class_names": 1,
        "nfe": "x",
    }
    (broken / "run.json").write_text(json.dumps(record))
    assert run("report", broken)[0] == 0 and "no JSON" in " ".join(check(broken / "report.html").words("p"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "unfinished/.run").mkdir(parents=True)
    assert "neither a run" in refused("empty")
    assert "unfinished" in refused("unfinished")
    assert "neither" in refused("nowhere")
    for name, text, message in (
        ("a.json", "", "no JSON"), ("b.jsonl", "{}\n{", "no JSONL"), ("c.json", "[1]", "no records"),
        ("d.jsonl", "", "no records"), ("e.json", "[" * 5000, "no JSON"),
    ):  # fmt: skip
        (tmp_path / name).write_text(text)
        assert message in refused(name)
    assert "cannot be read" in refused("f.json")
    assert not list(tmp_path.glob("*.html"))


def test_records_of_a_bench(run, tmp_path, monkeypatch):
    """Rows with the same keys are one line, with their median; a size is an axis."""
    monkeypatch.chdir(tmp_path)
    rows = [
        {"solver": solver, "steps": steps, "seed": seed, "error": (1 + seed) / steps, "sha": "ab" * 32, "cpu": HOSTILE}
        for solver in ("heun", "<b>") for steps in (5, 10, 20) for seed in range(2)
    ]  # fmt: skip
    (tmp_path / "study.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run("report", "study.jsonl")[0] == 0
    page = check(tmp_path / "study.html")
    assert page.words("th") == ["solver", "steps", "error"]
    assert page.words("td")[:3] == ["heun", "5", "0.3 (0.24 .. 0.36)"] and len(page.words("td")) == 3 * 6
    assert page.words("figcaption")[0] == "study: error over steps." and "<b>" in page.words("li")
    timed = {"p20": 1.0, "p50": 2.0, "p80": 3.0}
    record = {
        "schema": 1,
        "bench": "op",
        "case": "a",
        "seconds": {"ours": timed, "theirs": {**timed, "p50": 2.5}},
        "env": {"cpu": "x"},
    }
    (tmp_path / "op.json").write_text(json.dumps([record, {**record, "case": "b"}]))
    assert run("report", "op.json", "--out", "there.html")[0] == 0
    page = check(tmp_path / "there.html")
    assert page.words("td")[:3] == ["a", "ours", "2 (1 .. 3)"] and titles(page) == ["op", "Environment"]


@pytest.mark.slow
def test_models(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("report", "analytic:gaussian")[0] == 0 and run("report", "fashion")[0] == 0
    assert titles(check(tmp_path / "analytic-gaussian.html")) == ["The model", "Schedule", "Default plan"]
    page = check(tmp_path / "fashion.html")
    assert titles(page) == ["The model", "Schedule", "Default plan", "Loss", "Fitted grids"]
    assert len(page.all("img")) == 1 and "2,465,412" in page.words("dd")
    assert run("report", "fashion-classifier")[0] == 2 and run("report", "analytic:nothing")[0] == 2


def test_a_schedule_is_read_from_its_record_and_nothing_else_is():
    for schedule in (fs.VP(), fs.SubVP(t_end=0.01), fs.VE(), fs.EDM(), fs.Flow(), fs.VP(beta=fs.CosineBeta())):
        assert schedule_of(repr(schedule)) == schedule
    for text in (
        "",
        "unknown",
        "VP(",
        "VP(3)",
        "VP(beta=3)",
        "__import__('os')",
        "VP(**{})",
        "DiscreteVP",
        "3",
        "(" * 500,
    ):
        assert schedule_of(text) is None


@pytest.mark.slow
def test_runs_of_every_kind(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    points = ("sample", "analytic:mixture", "-n", "50", "--batch", "50", "--quiet")
    kinds = {
        "pc": (*points, "--solver", "score-sde", "--steps", "70", "--trajectory"),
        "table": (*points, "--schedule", "ddpm", "--steps", "3", "--trajectory"),
        "zero": (*points, "--schedule", "ddpm", "--zero-snr", "--steps", "3", "--trajectory"),
        "ve": (*points, "--schedule", "ve", "--steps", "3", "--trajectory"),
        "shards": (*points, "--shards", "--shard-size", "20"),
        "none": ("sample", "analytic:mixture", "-n", "0", "--quiet"),
        "chains": ("langevin", "analytic:four-gaussians", "--steps", "20", "-n", "5", "--quiet"),
    }
    pages = {}
    for name, words in kinds.items():
        assert run(*words, "--out", name)[0] == 0, name
        assert run("report", f"./{name}")[0] == 0, name
        pages[name] = check(tmp_path / name / "report.html")
        assert not any(
            re.search(r"\bnan\b|\binf\b", text) for tag in ("p", "text", "dd") for text in pages[name].words(tag)
        )
    assert pages["pc"].all("input")[0]["max"] == "60"
    assert "3 of 3 shards of 20 samples are there; these are of shard 0." in pages["shards"].words("p")
    assert any(" of the 20 samples of " in text for text in pages["shards"].words("figcaption"))
    assert "four-gaussians" in pages["chains"].words("h1")[0]
    for shape in ((1,), (3,), (2, 4), (4, 6, 6), (1, 28, 28)):
        out = drawn_in_python(tmp_path / f"shape{len(list(tmp_path.iterdir()))}", shape)
        assert run("report", out)[0] == 0
        check(out / "report.html")
    for file in sorted(ROOT.glob("bench/results/*.jsonl")):
        assert run("report", file)[0] == 0
        check(tmp_path / f"{file.stem}.html")


@pytest.mark.slow
@pytest.mark.nightly
def test_in_a_browser(run, tmp_path):
    """Chromium without a network: no message, no request, nothing wider than the screen, and the slider moves."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    out = tmp_path / "a"
    assert run(*POINTS, "--trajectory", "--out", out)[0] == 0 and run("report", out)[0] == 0
    page = (out / "report.html").read_text()
    quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND", "--v=0")
    common = [chromium, *quiet, "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}"]

    def seen(file: Path, *words: str) -> tuple[str, str]:
        done = subprocess.run([*common, *words, file.as_uri()], capture_output=True, text=True, timeout=120, check=True)
        assert not re.findall(r".*CONSOLE.*", done.stderr)
        return done.stdout, done.stderr

    dom, _ = seen(out / "report.html", "--dump-dom")
    assert (
        dom.count('class="shown"') == 1 and 'class="frames live"' in dom and "hidden" not in dom.split("<ol>")[0][-300:]
    )
    # Around the page as it is, a frame of each width; its own policy forbids a script that would look from inside.
    probe = """
      const page = frame.contentDocument, slider = page.querySelector(".frames input");
      slider.value = 1; slider.dispatchEvent(new Event("input"));
      const shown = [...page.querySelectorAll(".frames li")].map(li => getComputedStyle(li).visibility === "visible");
      const wide = page.documentElement.scrollWidth - page.documentElement.clientWidth;
      document.body.dataset[`w${frame.width}`] = `${shown.indexOf(true)} ${shown.filter(Boolean).length} ${wide} ` +
        `${performance.getEntriesByType("resource").filter(e => !e.name.startsWith("data:")).length}`;
    """
    frames = "".join(f'<iframe width="{w}" height="900"></iframe>' for w in SCREENS)
    around = tmp_path / "around.html"
    policy = re.search(r'<meta http-equiv="Content-Security-Policy" content="[^"]*">', page)[0]
    assert "default-src &#39;none&#39;" in policy or "default-src 'none'" in policy
    around.write_text(
        f"<!DOCTYPE html><body>{frames}<script>"
        f"const page = {json.dumps(page.replace('</', '<@/'))}.replaceAll('<@/', '</');"
        f"for (const frame of document.querySelectorAll('iframe')) {{ frame.onload = () => {{ {probe} }};"
        "frame.srcdoc = page; }</script></body>"
    )
    dom, _ = seen(around, "--dump-dom", "--virtual-time-budget=5000")
    for width in SCREENS:
        assert f'data-w{width}="1 1 0 0"' in dom, re.findall(r'data-w\d+="[^"]*"', dom)
