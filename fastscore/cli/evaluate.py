"""fastscore evaluate: what differs between samples and real data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastscore.cli.against import FASHION, Known, check, own_target, reference_of, samples_of, settings_of
from fastscore.cli.types import Count, Number, Out, shorten

if TYPE_CHECKING:
    from fastscore.report.quality import Figure, Quality

REPORT = "quality.json"


@click.command()
@click.argument("samples")
@click.option(
    "--against",
    metavar="DATA",
    help="What the samples should be like: as in `fastscore train`, or analytic:NAME, exactly known.  [default: "
    f"the target of a run of analytic:NAME, else {FASHION}]",
)
@click.option("--data", metavar="DATA", help="The same as --against DATA --json.")
@click.option("--figures", metavar="A,B,..", help="Only these figures, by name or first word; see the README.")
@click.option("--classifier", default="fashion-classifier", show_default=True, help="Bundled name or folder.")
@click.option("--limit", type=Count(2), help="Use the first N samples.")
@click.option("--floor/--no-floor", default=True, show_default=True, help="Show the figures of real data beside them.")
@click.option("--bits-dim", type=Count(2), metavar="N", help="Also bits/dim of N test images under the run's model.")
@click.option(
    "--fid-weights",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Also the FID, with Inception's weights as torch-fidelity has them (extra: fid).",
)
@click.option(
    "--level", type=Number(0, 0.5, open=True), default=0.01, show_default=True, help="Chance of a false alarm."
)
@click.option("--seed", type=Count(0, 2**64 - 1), default=0, show_default=True, help="Seed of resampling.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--out", type=Out(), help=f"Write the figures to this file.  [default: {REPORT} in a run's folder]")
@click.option("--overwrite", is_flag=True, help="Replace the file --out.")
@click.option("--quiet", is_flag=True, help="No progress bar, no table.")
def evaluate(samples: str, **options: Any) -> None:
    """Compare SAMPLES (a run, or an .npz or .npy file) with real data: points or images.

    \b
        fastscore evaluate out --against fashion-mnist
        fastscore evaluate points --against analytic:mixture --figures energy,log-likelihood

    Each figure stands beside its floor, which is the same figure of real data, its standard error and whether it
    differs: of right samples any figure does with a chance of --level. fastscore/report/quality/README.md says what
    each one is and what it cannot say. A run's folder gets a quality.json.
    """
    import numpy as np

    from fastscore.report.opened import open_run
    from fastscore.report.quality import FIGURES, compare
    from fastscore.report.quality.compare import chosen

    old, data = options["data"] is not None, options["data"] or options["against"]
    if options["data"] and options["against"]:
        raise ValueError("--data and --against are two words for one option; give one of them")
    names = None
    if options["figures"] is not None:
        names = [name.strip().lower() for name in options["figures"].split(",")]
        chosen(FIGURES, names)
    write = _place(samples, options["out"], options["overwrite"])
    drawn = samples_of(samples)
    x = drawn.x[: options["limit"]]
    net, classes, predicted, caveats = None, [], None, list[str]()
    if x.dtype == np.uint8 and (names is None or chosen(_JUDGED, names)):
        net, classes = _classifier(options["classifier"], x, caveats)
    known = reference_of(data or own_target(samples, x), len(x), options["seed"])
    check(samples, x, known)
    caveats += known.caveats
    more, notes = _others(samples, x, known, options)
    if net is not None and known.name != FASHION:
        caveats.append(
            f"the classifier {options['classifier']} knows its own classes, which may not be those of the data"
        )
    labels = None if drawn.labels is None else drawn.labels[: len(x)]
    quality = compare(
        x, known.y, score=known.score, log_density=known.log_density, real=known.real, train=known.train,
        classifier=net, labels=labels, real_labels=known.labels, figures=names, more=more, seed=options["seed"],
        level=options["level"], progress=not (options["quiet"] or old),
    )  # fmt: skip
    quality = replace(
        quality, caveats=[*quality.caveats, *caveats, *notes], samples=f"{samples}, {len(x)} samples",
        reference=f"{known.name}, {len(known.y)} {known.kind}",
    )  # fmt: skip
    if not options["floor"]:
        quality = replace(quality, figures={k: replace(f, floor=None) for k, f in quality.figures.items()})
    record = quality.record()
    if _is_run(samples):
        record["overall"]["run"] = open_run(samples).identity
    if write is not None:
        write(_dump, record)
    if old or options["as_json"]:
        if net is not None:
            from fastscore.report.metrics import features

            predicted = features(net, x)[1]
        click.echo(json.dumps(_as_json(quality, known, options, predicted, classes), indent=1))
    elif not options["quiet"]:
        click.echo(quality.table())


_JUDGED = ("classifier-fid", "precision", "recall", "class-shares", "label-agreement")


def _classifier(classifier: str, x: Any, caveats: list[str]) -> tuple[Any, list[str]]:
    """Return the classifier and its class names; none, with a word on why, if it takes other images."""
    from fastscore.training.classifier import load_classifier

    net, names = load_classifier(classifier)
    takes = next(net.parameters()).shape[1]  # of its first convolution
    if takes == x.shape[3] and min(x.shape[1:3]) >= 4:
        return net, names
    caveats.append(
        f"no classifier-fid, precision, recall and classes: {shorten(classifier)} takes images of {takes} channel(s) "
        "and at least 4 x 4 pixels; train one of these data: fastscore train-classifier"
    )
    return None, []


def _others(samples: str, x: Any, known: Known, options: dict[str, Any]) -> tuple[dict[str, Figure], list[str]]:
    """Return the figures that need a network of their own, and their caveats."""
    import numpy as np

    from fastscore.report.quality import Figure

    found, notes = dict[str, Figure](), list[str]()
    if options["bits_dim"] is not None:
        model = settings_of(samples).get("model")
        if not model or known.name.startswith("analytic:"):
            raise ValueError("--bits-dim needs a run's folder, whose run.json names its model, and data in files")
        splits = ("test", "train") if known.real is not None else ("test",)
        value, *floor = (_bits(model, known.name, split, options["bits_dim"], options["quiet"]) for split in splits)
        floors = [bits["bits_per_dim"] for bits in floor]
        found["bits-dim"] = Figure(value["bits_per_dim"], *(floors or [None]), stderr=value["bits_per_dim_stderr"])
        notes.append(
            f"bits-dim: of {value['examples']} test examples under {model}; the floor is that of training examples. "
            "It says how the model's density fits data, and nothing of these samples"
        )
    if options["fid_weights"] is not None:
        if x.dtype != np.uint8:
            raise ValueError("--fid-weights: the FID is of images of 8 bits")
        from fastscore.report.quality.fid import fid

        extract, weights = _inception(options["fid_weights"])
        found["fid"], caveats = fid(x, known.y, known.real, extract, weights, progress=not options["quiet"])
        notes += caveats
    return found, notes


def _inception(file: Path) -> tuple[Any, str]:
    """Return what extracts Inception's features, by the weights of a file, and their sha256."""
    import hashlib

    from fastscore.adapters.weights import saved
    from fastscore.report.quality.fid import inception

    try:
        state = saved(file)
    except Exception as error:  # it fails in every way there is
        raise ValueError(f"{file}: not what torch.save wrote ({shorten(error, 200)})") from None
    if not isinstance(state, dict):
        raise ValueError(f"{file} holds a {type(state).__name__}, and no weights by name")
    try:
        extract = inception(state)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return extract, hashlib.sha256(file.read_bytes()).hexdigest()


def _bits(model: str, data: str, split: str, count: int, quiet: bool) -> dict[str, Any]:
    """Return what `fastscore likelihood` says of a split."""
    from fastscore.cli.likelihood import likelihood, measure

    words = [model, data, "--split", split, "--limit", str(count), *(["--quiet"] if quiet else [])]
    with likelihood.make_context("likelihood", words) as context:
        return measure(**context.params)[0]


def _as_json(
    quality: Quality, known: Known, options: dict[str, Any], predicted: Any, classes: list[str]
) -> dict[str, Any]:
    """Return the report for programs; the first keys are those of the classifier-FID alone."""
    import numpy as np

    figures = quality.figures
    fid, agreement = figures.get("classifier-fid"), figures.get("label-agreement")
    found: dict[str, Any] = {} if fid is None else {"classifier-FID": round(fid.value, 4)}
    found |= {"samples": int(quality.samples.split(", ")[-1].split()[0]), "reference": quality.reference}
    if predicted is not None:
        share = np.bincount(predicted, minlength=len(classes)) / len(predicted)
        found["classifier"] = options["classifier"]
        found["predicted classes"] = {n: round(float(p), 4) for n, p in zip(classes, share, strict=True)}
    if agreement is not None:
        found["label agreement"] = round(agreement.value, 4)
    if fid is not None and options["floor"]:
        half = (len(known.y) + 1) // 2
        kind = "train against test" if known.real is not None else f"{half} against {len(known.y) - half} others"
        if fid.floor is not None:
            found[f"floor ({kind})"] = round(fid.floor, 4)
        else:
            found["floor"] = f"none: {known.name} has {len(known.y)} images and no test images of its own"
    return {**found, "figures": quality.record(), "verdict": quality.verdict, "caveats": list(quality.caveats)}


def _place(samples: str, out: Path | None, overwrite: bool) -> Any:
    """Return what writes the figures, or None: to --out, or beside the record of a run in a folder."""
    from fastscore.output.commit import new_file

    if out is None and not _is_run(samples):
        return None
    path, mine = (out, overwrite) if out is not None else (Path(samples) / REPORT, True)
    return click.get_current_context().with_resource(new_file(path, mine))


def _is_run(samples: str) -> bool:
    return any((Path(samples) / name).is_file() for name in ("run.json", "manifest.json"))


def _dump(file: Any, record: dict[str, Any]) -> None:
    file.write((json.dumps(record, indent=1) + "\n").encode())
