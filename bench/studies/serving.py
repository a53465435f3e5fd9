"""Requests of 8 to 50 steps in one engine's lanes, against one run of the same evaluations, and against runs alone.

    python -m bench.studies.serving            # appends bench/results/serving.jsonl, writes its .md
    python -m bench.studies.serving --quick    # few requests, nothing recorded

The bundled model of Fashion-MNIST, one sample a request. "one run" is a Sampler that draws as many samples with the
mean number of steps, at the same micro-batch: no engine can be faster. "alone" is what a service without batching does,
one run after the other at batch 1; every fourth request is timed so. Rates are network evaluations of real samples a
second of the process's own time (one thread: a busy neighbour takes none of it): empty lanes and padding count for
nothing. Before anything is timed, samples of the engine equal those of their
own runs at its batch, to the bit: those of every eighth request.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch

import fastscore as fs
from bench import common
from bench.records import RESULTS, SCHEMA, append, environment, load, publish
from bench.report import headline

RECORDS = RESULTS / "serving.jsonl"
SOLVERS = ("dpmpp-2m", "ddim", "er-sde", "heun")


class OwnTime:
    """The time of this process, all its threads together."""

    def __call__(self, work: common.Work, calls: int) -> float:
        """Return the mean seconds of a call."""
        start = time.process_time()
        for _ in range(calls):
            work()
        return (time.process_time() - start) / calls


@dataclass(frozen=True)
class Asked:
    """A request: a sampler, and the label of its one sample."""

    sampler: fs.Sampler
    id: int
    label: int
    evaluations: int


def asked(model: fs.ScoreModel, n: int, batch: int, guided: int) -> list[Asked]:
    """Return n requests whose plans have 8 to 50 evaluations, long and short ones in turns; every ``guided``-th guided.

    Evaluations of a guided sample are two each.
    """
    made: dict[tuple[str, int, bool], fs.Sampler] = {}
    result = []
    for k in range(n):
        name, evaluations = SOLVERS[k % len(SOLVERS)], 8 + 42 * (k * 37 % n) // max(n - 1, 1)
        steps, mixed = (evaluations // 2 if name == "heun" else evaluations), guided > 0 and k % guided == 0
        if (name, steps, mixed) not in made:
            guidance = fs.Guidance(2.0) if mixed else None
            made[name, steps, mixed] = fs.Sampler(model, solver=name, steps=steps, batch=batch, guidance=guidance)
        sampler = made[name, steps, mixed]
        assert sampler.plan is not None
        result.append(Asked(sampler, k, k % model.classes, sampler.plan.nfe))
    return result


def served(engine: fs.Engine, requests: list[Asked]) -> torch.Tensor:
    """Return the samples of all requests, drawn together."""
    handles = [engine.submit(one.sampler, [one.id], labels=one.label) for one in requests]
    return torch.cat([handle.result() for handle in handles])


def study(n: int, batch: int, rounds: int, guided: int = 0) -> dict[str, Any]:
    """Return rates of the three ways, in the same rounds."""
    model = fs.load_model("fashion")
    requests, engine = asked(model, n, batch, guided), fs.Engine(model, batch=batch)
    total = sum(one.evaluations for one in requests)
    one_run = fs.Sampler(model, solver="dpmpp-2m", steps=round(total / n), batch=batch)
    assert one_run.plan is not None
    some, looked_at = requests[::4], requests[::8]
    single = [fs.Sampler(model, **{**one.sampler.settings, "execution": None}, batch=1) for one in some]
    expected = torch.cat([one.sampler.run([one.id], labels=one.label) for one in looked_at])
    samples, ticks = served(engine, requests), engine.ticks
    if not torch.equal(samples[::8], expected):
        raise common.RedGate("samples of the engine differ from those of their own runs")
    evaluations = {"engine": total, "one run": n * one_run.plan.nfe, "alone": sum(one.evaluations for one in some)}
    variants = {
        "engine": lambda: served(engine, requests),
        "one run": lambda: one_run.run(range(n), labels=[k % model.classes for k in range(n)]),
        "alone": lambda: [s.run([one.id], labels=one.label) for s, one in zip(single, some, strict=True)],
    }
    seconds = common.paired(variants, OwnTime(), rounds, 0.0)
    rates = {name: [evaluations[name] / s for s in values] for name, values in seconds.items()}

    def ratio(other: str) -> dict[str, float]:
        return common.spread([a / b for a, b in zip(rates["engine"], rates[other], strict=True)])

    return {
        "requests": n, "batch": batch, "guided": guided, "evaluations": total, "ticks": ticks,
        "evaluations_per_s": {name: common.spread(values) for name, values in rates.items()},
        "to_one_run": ratio("one run"), "to_alone": ratio("alone"),
    }  # fmt: skip


def table(run: dict[str, Any]) -> str:
    """Return the table of one run."""
    lines = [
        f"{run['cases'][0]['requests']} requests of one sample each, 8 to 50 evaluations, {', '.join(SOLVERS)}; the "
        f"bundled model of Fashion-MNIST. Samples equal those of their own runs, to the bit. {headline(run['env'])}.",
        "",
        "| batch | guided | evaluations | ticks | engine | one run | alone | engine / one run | engine / alone |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case in run["cases"]:
        rates = " | ".join(f"{case['evaluations_per_s'][k]['p50']:.0f}" for k in ("engine", "one run", "alone"))
        ratios = " | ".join(
            f"**{r['p50']:.2f}** ({r['p20']:.2f} .. {r['p80']:.2f})" for r in (case["to_one_run"], case["to_alone"])
        )
        share = f"1 of {case['guided']}" if case["guided"] else "none"
        lines.append(f"| {case['batch']} | {share} | {case['evaluations']} | {case['ticks']} | {rates} | {ratios} |")
    return "\n".join(
        [*lines, "", "Rates are network evaluations of real samples a second of the process's own time, on one thread."]
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the study; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=64, help="requests")
    parser.add_argument("--batch", type=int, nargs="+", default=[16], help="lanes")
    parser.add_argument("--rounds", type=int, default=5, help="in which each way is timed once")
    parser.add_argument("--guided", type=int, nargs="+", default=[0], help="one request of so many; 0: none")
    parser.add_argument("--quick", action="store_true", help="see that it works; figures mean nothing")
    parser.add_argument("--table", action="store_true", help="only write the table of the last record")
    args = parser.parse_args(arguments)
    if args.table:
        publish("serving", "Serving", table(load(RECORDS)[-1]))
        return 0
    n, batches, rounds = (4, [2], 1) if args.quick else (args.num, args.batch, args.rounds)
    run: dict[str, Any] = {"schema": SCHEMA, "bench": "serving", "env": environment(torch.device("cpu"))}
    run["cases"] = [study(n, batch, rounds, guided) for batch in batches for guided in args.guided]
    print(table(run))
    if not args.quick:
        append(RECORDS, run)
        publish("serving", "Serving", table(run))
    return 0


if __name__ == "__main__":
    sys.exit(main())
