"""The network path: a score network made as fast as the machine allows, at a checked cost in accuracy.

Three numerics besides the network's own: "fp32" is the network compiled, whose roundings differ in the last
digits; "tf32" rounds the factors of its products on CUDA; "bf16" runs heavy layers on bfloat16 operands
(see network/bf16.py).

None is taken on trust. Before its first evaluation a prepared network is compared with the original in true float32 on
noisy inputs over the whole schedule, and is used only within LIMIT. On a CPU the error that was found is kept with the
package, whose key holds weights, code, versions and processor, and is found again where anything differs.
"""

from __future__ import annotations

import re
import tempfile
from contextlib import nullcontext
from dataclasses import replace
from importlib.util import find_spec

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from fastscore.execution import Execution
from fastscore.model.condition_shapes import is_open
from fastscore.model.score import ScoreModel
from fastscore.network import artefacts, package
from fastscore.network.arithmetic import accelerator
from fastscore.network.bf16 import RECIPES, Recipe, Traced, native_bf16
from fastscore.network.jit import compiled, has_compiler
from fastscore.network.prepared import Numerics, Origin, Prepared, Say, numerics, warn
from fastscore.network.stored import OPTIONS, Stored
from fastscore.network.surroundings import evaluating, undisturbed
from fastscore.network.trial import LIMIT, Inexact, Trial, Unfit
from fastscore.ops.machine import processor

__all__ = ["LIMIT", "SMALL", "Inexact", "Numerics", "Prepared", "Trial", "Unfit", "numerics", "prepare"]

OLDEST = (8, 0)  # compute capability with bfloat16 and TF32
PACKAGED = ("cpu",)  # where networks are compiled ahead of time; torch.compile elsewhere
SMALL = 250_000  # parameters; compiling less costs more than it saves
LINES = 16  # of a package: fewer cost more a sample, more are computed in vain for a few samples

_said: set[str] = set()


def prepare(
    model: ScoreModel,
    batch: int = 64,
    device: torch.device | str | None = None,
    network: str = "auto",
    say: Say | None = None,
    recheck: bool = False,
) -> ScoreModel:
    """Return the model with its network prepared for sampling at one micro-batch.

    On a CPU the network is compiled ahead of time and the package kept (see network/package.py), so that
    the next process needs neither a compiler nor the time. On CUDA it runs through torch.compile, with weights of its
    own (see network/stored.py), and what that makes is kept too.

    Args:
        model: for "fp32" and "bf16" its network must be an nn.Module with float32 weights. It is neither moved nor
            changed. Any other network stays as it is, and the reason is said.
        batch: micro-batch. A network compiled ahead of time for the CPU computes LINES samples at a time, or ``batch``
            if that is fewer, and takes any number; on CUDA it takes no other.
        device: that it runs on; where its parameters live if left out.
        network: "own" does nothing; "fp32" compiles ahead of time, in float32 without TF32 on CUDA; "tf32", there
            only, with it; "bf16" runs heavy layers in bfloat16; "auto" is bf16 where the device has bfloat16 arithmetic
            if its error is within LIMIT and fp32 otherwise, and own for networks under SMALL parameters, where there is
            no compiler, on CUDA before sm_80 and without triton; "compile" and "regional" are torch.compile's, without
            a check. A model with a ``cond_shape`` runs as its own or through torch.compile: nobody knows what
            conditions a check should try.
        say: called with one line when something takes long or does not work; warnings.warn if left out.
        recheck: compare a kept package with the network again, although it has passed.

    Weights, buffers or layers of the network that change later count from the next run on: what was compiled is then
    compiled again, and ``say`` is told; on CUDA other weights of the same layers are checked and read, which is quick.

    Raises:
        ValueError: an unknown choice, a network that is prepared already, or one on another device; or torch.compile
            for a condition whose length each request chooses.
    """
    return _prepared(model, batch, device, network, say, recheck)


def _prepared(
    model: ScoreModel,
    batch: int,
    device: torch.device | str | None,
    network: str,
    say: Say | None,
    recheck: bool = False,
    stored: Stored | None = None,
) -> ScoreModel:
    """Return what ``prepare`` does; ``stored`` is what was compiled of this network when it had other weights."""
    say, place = say or warn, Execution(device, batch, network=network).on(model.net).place
    if network in ("compile", "regional") and is_open(model.cond_shape):
        raise ValueError(
            f"network = {network!r} compiles for one shape, and requests choose lengths of cond_shape = "
            f"{model.cond_shape}; use network='own', or replace(model, cond_shape=..) with the lengths in numbers"
        )
    if network in ("own", "compile", "regional"):
        return model if network == "own" else replace(model, net=compiled(model.net, network, place))
    if isinstance(model.net, Prepared):
        raise ValueError("the network is prepared already; use network='own'")
    if model.cond_shape is not None or model.two_times:
        unknown = "conditioning tensors" if model.cond_shape is not None else "pairs of times"
        reason = f"{network} does not know what {unknown} to try"
        return model if network == "auto" else _as_it_is(model, say, reason)
    net = model.net
    if not isinstance(net, nn.Module):
        return model if network == "auto" else _as_it_is(model, say, f"{network} needs an nn.Module")
    if any(is_lazy(p) for p in net.parameters()):
        reason = f"{network} needs parameters that are there: call the network once, which makes them"
        return model if network == "auto" else _as_it_is(model, say, reason)
    kinds = sorted({str(p.dtype) for p in net.parameters() if p.is_floating_point()})
    small = sum(p.numel() for p in net.parameters()) < SMALL
    if network == "auto" and (small or kinds != ["torch.float32"]):
        return model
    if kinds != ["torch.float32"]:
        return _as_it_is(model, say, f"{network} needs float32 weights, not {' and '.join(kinds) or 'none'}")
    if reason := lack(place):
        return _as_it_is(model, say, reason, once=network == "auto")
    with undisturbed(place=place, tf32=False), evaluating(net):
        lines = min(batch, LINES) if place.type in PACKAGED else batch
        prepared = _ahead_of_time(model, Trial(model, net, lines, place, recheck), network, say, stored)
    if isinstance(prepared.net, Prepared):
        prepared.net.follow(Origin(model, batch, place, network, say, _prepared))
    return prepared


def _ahead_of_time(model: ScoreModel, trial: Trial, network: str, say: Say, stored: Stored | None) -> ScoreModel:
    """Return the model with the first of the wanted numerics that its network can be compiled in, or as it is."""
    reason, packaged = "", trial.device.type in PACKAGED
    has_bf16 = trial.device.type != "cpu" or native_bf16()
    for kind in [network] if network != "auto" else ["bf16", "fp32"] if has_bf16 else ["fp32"]:
        try:
            made = _packaged(trial, kind, say) if packaged else _jit(trial, kind, say, stored)
        except Inexact as error:
            reason = str(error)
        except Unfit as error:
            reason = str(error)
            break
        else:
            if reason:
                made.numerics = replace(made.numerics, instead=reason)
                say(f"the network runs in {kind}: {reason}")
            return replace(model, net=made)
    return _as_it_is(model, say, reason)


def lack(place: torch.device) -> str:
    """Return what a device lacks to run a compiled network, or ""; a CPU's compiler is asked for when it is needed."""
    if place.type != "cuda":
        return ""
    name, capability = torch.cuda.get_device_name(place), torch.cuda.get_device_capability(place)
    if capability < OLDEST:
        return f"{name} is sm_{capability[0]}{capability[1]}; compiled networks need sm_80 or newer"
    return "" if find_spec("triton") else "triton is not installed (pip install triton)"


def _packaged(trial: Trial, kind: str, say: Say) -> Prepared:
    """Return the network as a package: the one that is kept, or a new one."""
    key = package.key_of(trial.net, trial.shape, kind)

    def prepared(made: package.Package) -> Prepared:
        how = Numerics(kind, "package", None, torch.get_num_threads(), key, trial.shape[0])
        net = Prepared(made.call, trial.example, how)
        error = None if trial.anew else made.checked.get(trial.digest)
        if error is None:
            made.remember(trial.digest, error := trial.checked(net, kind))
        net.numerics = replace(how, error=error)
        return net

    try:
        made = package.load(key, say)
    except package.Remembered as error:
        raise Unfit(f"torch cannot compile it ({error})") from None
    if made is not None:
        try:
            return prepared(made)
        except (Inexact, RuntimeError) as error:
            say(f"compiled network {key} ignored: {error}")
    if not has_compiler():
        raise Unfit("no C++ compiler (g++ or clang++)")
    if re.search(r"\s", tempfile.gettempdir()):
        raise Unfit(f"compilers cannot work in {tempfile.gettempdir()!r}: set TMPDIR to a folder without a space")
    _ = trial.expected  # a network that cannot be sampled says so before it is compiled
    traced = Traced(trial.net, RECIPES["cpu"][kind][0])
    if kind == "bf16":
        trial.checked(traced, kind)
    say(f"compiling the network for this machine in {kind}, once for these weights: half a minute")
    try:
        made = package.build(key, traced, trial.example, say)
    except Exception as error:  # torch.export and the compiler fail in every way there is
        package.failed(key, error, say)
        raise Unfit(f"torch cannot compile it ({package.one_line(error)})") from error
    return prepared(made)


def _jit(trial: Trial, kind: str, say: Say, stored: Stored | None = None) -> Prepared:
    """Return the network through torch.compile: what was compiled for other weights, or earlier, or now."""
    recipe = _chosen(trial, kind)
    if stored is None or stored.recipe != recipe or not stored.complete:
        stored = None
    about = f"{kind} {recipe.residual} {trial.device.type} {OPTIONS}"
    machine = accelerator(trial.device) if trial.device.type == "cuda" else [processor()]
    key = package.key_of(trial.net, trial.shape, about, machine)
    tf32 = None if trial.device.type == "cpu" else "both" if recipe.tf32 else "off"
    residual = {torch.bfloat16: "bf16", torch.float32: "fp32"}[recipe.residual] if kind == "bf16" else None
    how = Numerics(kind, "full", None, None, key, None, residual, tf32)
    try:
        with nullcontext(True) if stored else artefacts.kept(key, say) as found:
            if not found:
                say(f"compiling the network for this machine in {kind}, once for these layers: half a minute or more")
            if stored:
                stored.load(trial.net)
            else:
                stored = Stored(trial.net, recipe, trial.example)
            net = Prepared(stored, trial.example, how)
            net.numerics = replace(how, error=trial.checked(net, kind))  # the first call compiles
    except Unfit:
        raise
    except Exception as error:  # torch.export and the compiler fail in every way there is
        raise Unfit(f"torch cannot compile it ({package.one_line(error)})") from error
    return net


def _chosen(trial: Trial, kind: str) -> Recipe:
    """Return the first recipe of a kind whose score is near enough, before anything is compiled.

    Raises:
        Inexact: none is.
        Unfit: none can be evaluated.
    """
    reason: Unfit | None = None
    for recipe in (recipes := RECIPES["cuda"][kind]):
        if len(recipes) == 1:
            return recipe
        try:
            trial.checked(Traced(trial.net, recipe), kind)
            return recipe
        except Inexact as error:
            reason = error
        except Exception as error:  # of a network that mixes dtypes as torch will not
            reason = reason or Unfit(f"{kind} cannot be had ({package.one_line(error)})")
    assert reason is not None
    raise reason


def _as_it_is(model: ScoreModel, say: Say, reason: str, once: bool = False) -> ScoreModel:
    """Return the model, and say why; ``once`` in a process, of what is so for every network."""
    if not (once and reason in _said):
        say(f"the network runs as it is: {reason}")
    _said.add(reason)
    return model
