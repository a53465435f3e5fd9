"""fastscore doctor: check this machine and say what would be faster."""

from __future__ import annotations

import click

from fastscore.cli.options import device_option


@click.command()
@device_option
def doctor(device: str) -> None:
    """Check that this machine gives the promised bits, and print what runs what."""
    import importlib.util
    import os
    import time

    from fastscore.engine.selfcheck import checks, fingerprint
    from fastscore.network.bf16 import native_bf16
    from fastscore.network.jit import has_compiler
    from fastscore.network.prepare import lack
    from fastscore.ops.backend import named_device, resolve
    from fastscore.output.load import load

    place = named_device(device)
    ops = resolve("auto", place)
    start = time.perf_counter()
    click.echo(fingerprint(place))
    for passed in checks(place, ops):
        click.echo(f"  ok  {passed}")
    click.echo(f"checked in {time.perf_counter() - start:.2f} s")
    click.echo(f"backend on {place}: {ops.name} (update, langevin, quantize)")
    if place.type == "cpu":
        kind = "bf16 where the scores agree within 1 %" if native_bf16() else "fp32 (this CPU has no bfloat16)"
        click.echo(f"network on cpu: --network auto is {kind if has_compiler() else 'the network as it is'}")
    else:
        kind = f"the network as it is: {said}" if (said := lack(place)) else "bf16 where the scores agree within 1 %"
        click.echo(f"network on {place}: --network auto is {kind}")
    advice = []
    if (busy := load())["busy"]:
        advice.append(
            f"fewer other processes: the load is {busy['average']} on {busy['cores']} cores, so that threads wait"
        )
    if place.type == "cuda" and importlib.util.find_spec("triton") is None:
        advice.append("pip install triton for the fused kernels")
    if place.type != "cuda":
        advice.append("a CUDA device would run the fused kernels and capture the loop")
    if place.type == "cpu" and ops.name == "reference" and not os.environ.get("FASTSCORE_BACKEND"):
        advice.append("a C++ compiler when fastscore is installed: noise and updates would run in one fused pass")
    if not has_compiler(place):
        advice.append("a C++ compiler (g++ or clang++) would let torch.compile run the network")
    for line in advice:
        click.echo(f"faster with: {line}")
