"""fastscore models and fastscore env: what is there."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys

import click

from fastscore.cli.known import FOLDER


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def models(as_json: bool) -> None:
    """List the bundled models and the analytic ones."""
    from fastscore.data.toys import TOYS

    rows = []
    for file in sorted(FOLDER.glob("*/config.json")):
        config = json.loads(file.read_text())
        size = (file.parent / "model.safetensors").stat().st_size / 1e6
        kind = "score model" if "schedule" in config else "classifier"
        rows.append(
            {
                "name": file.parent.name,
                "kind": kind,
                "shape": config.get("shape"),
                "classes": config.get("class_names"),
                "megabytes": round(size, 2),
                "made by": config.get("info", {}).get("command"),
            }
        )
    analytic = ["gaussian", "mixture", *TOYS]
    if as_json:
        click.echo(json.dumps({"bundled": rows, "analytic": [f"analytic:{k}" for k in analytic]}, indent=1))
        return
    for row in rows:
        shape = "" if row["shape"] is None else f", {'x'.join(map(str, row['shape']))}"
        click.echo(f"{row['name']}  ({row['kind']}{shape}, {row['megabytes']} MB)")
        if row["classes"]:
            click.echo("    classes: " + ", ".join(f"{k} {name}" for k, name in enumerate(row["classes"])))
    click.echo("analytic (exact scores, no weights): " + ", ".join(f"analytic:{k}" for k in analytic))


@click.command()
@click.option("--no-torch", is_flag=True, help="Skip what needs torch to be imported.")
def env(no_torch: bool) -> None:
    """Print versions, devices and compilers, for bug reports."""
    click.echo(f"fastscore  {importlib.metadata.version('fastscore')}")
    click.echo(f"python     {sys.version.split()[0]} on {platform.platform()}")
    for name in ("torch", "triton", "numpy", "safetensors", "pillow", "click", "tqdm", "matplotlib", "nvidia-ml-py"):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = "not installed"
        click.echo(f"{name:<14} {version}")
    compiler = next((shutil.which(c) for c in ("g++", "clang++", "c++") if shutil.which(c)), None)
    click.echo(f"C++ compiler   {compiler or 'none: torch.compile is off, everything else works'}")
    click.echo(f"CPU            {platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    if no_torch:
        return
    import torch

    from fastscore.kernels.cpu import library

    click.echo(
        f"C++ library    {library.describe() if library.library_file() else 'not built: the reference runs instead'}"
    )
    count = torch.cuda.device_count()
    click.echo(f"CUDA devices   {count or 'none'}")
    for k in range(count):
        properties = torch.cuda.get_device_properties(k)
        arch, memory = f"sm_{properties.major}{properties.minor}", properties.total_memory >> 20
        click.echo(f"  cuda:{k}  {properties.name}, {arch}, {memory} MiB")
