"""Exceptions that a run raises, and the one check of what users pass: ValueError for what an annotation rules out."""

from __future__ import annotations

import inspect
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from functools import cache, wraps
from numbers import Integral, Real
from typing import Any, TypeVar, cast

Checked = TypeVar("Checked", bound=Callable[..., Any])


class NonFiniteError(FloatingPointError):
    """A sample became NaN or Inf; the message names the sample and the row."""


class StepSizeError(ArithmeticError):
    """An adaptive solver cannot reach its tolerance; the message names the sample and the remedy."""


class SelfCheckError(ArithmeticError):
    """This machine does not give the bits that fastscore promises."""


class Coded(Exception):
    """An error that knows the exit code of a command that it ends, ``code``."""

    code = 70


def nearest(name: object, names: Iterable[object]) -> str:
    """Return " (nearest: heun, heunpp2)" for a name that is not among some; nothing where none of them is near."""
    from difflib import SequenceMatcher  # which nobody waits for who makes no mistake

    said = _folded(name)[:60]
    likeness = {str(one): SequenceMatcher(None, _folded(one), said).ratio() for one in names}
    least = max(0.5, max(likeness.values(), default=0.0) - 0.2)
    near = sorted((one for one in likeness if likeness[one] >= least), key=lambda one: -likeness[one])[:3]
    return f" (nearest: {', '.join(near)})" if near else ""


def _folded(name: object) -> str:
    return str(name).strip().replace("_", "-").replace(" ", "-").lower()


def unknown(what: str, value: object, names: Iterable[object], more: str = "") -> ValueError:
    """Return the error that a value is none of the names there are, the nearest of them first.

    Args:
        what: that the name is of: "solver".
        value: what was given.
        names: all that there are.
        more: what else would do, after the names.
    """
    names = list(names)
    return ValueError(
        f"{what} = {short(value)}{nearest(value, names)} must be one of {', '.join(map(str, names))}{more}"
    )


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out: torch's do it by their kind, or in words."""
    words = "out of memory|allocate memory|not enough memory|ALLOC_FAILED"
    named = type(error).__name__ == "OutOfMemoryError"
    said = isinstance(error, RuntimeError) and (named or re.search(words, str(error)) is not None)
    return isinstance(error, MemoryError) or said


def typed(subject: Checked) -> Checked:
    """Check arguments against their annotations: of a function, or of a dataclass by its fields.

    Python's own words for a wrong type come late and from below ("'<=' not supported between 'int' and 'str'"), and
    some wrong types come through: True is a number of steps, and NaN lies outside no range. So numbers are no bool, no
    string, no tensor and no NaN (but where NaN is the default); those of NumPy become Python's, which print, hash and
    pickle alike. What an annotation means beyond numbers, names, functions and classes is not looked at, nor ranges.

        @dataclass(frozen=True)
        @typed
        class Churn: ..

    Raises, of what is decorated:
        ValueError: a value of another type; the message names it and what it must be.
    """
    if isinstance(subject, type):
        return _typed_class(subject)
    signature = inspect.signature(subject)
    owner = subject.__qualname__.removesuffix(".__init__")
    named = {k: p for k, p in signature.parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}

    @wraps(subject)
    def call(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            if name in named:
                p = named[name]
                bound.arguments[name] = checked(owner, name, value, p.annotation, subject.__module__, p.default)
        return subject(*bound.args, **bound.kwargs)

    return call  # pyright: ignore[reportReturnType]


def _typed_class(cls: Any) -> Any:
    own: Callable[[Any], None] | None = getattr(cls, "__post_init__", None)

    def check(self: Any) -> None:
        for field in fields(self):
            if field.type in ("Solver", "Solver | None"):
                continue  # composition says it itself, with a remedy: see solvers/compose.py
            value = getattr(self, field.name)
            new = checked(cls.__name__, field.name, value, field.type, cls.__module__, field.default)
            if new is not value:
                object.__setattr__(self, field.name, new)
        if own is not None:
            own(self)

    cls.__post_init__ = check
    return cls


_PLAIN = {kind.__name__: kind for kind in (bool, float, int, str)}


def checked(owner: str, name: str, value: Any, annotation: Any, module: str, default: Any = None) -> Any:
    """Return a value as its annotation has it; see ``typed``.

    Args:
        owner, name: of the argument, for the message.
        annotation: as a string; the names in it are those of ``module``.
    """
    if not isinstance(annotation, str):
        return value
    if type(value) is _PLAIN.get(annotation) and value == value:  # no NaN: there is nothing more to look at
        return value
    kinds, words = _alternatives(annotation), list[str]()
    for kind in kinds:
        accepted, new, word = _as(kind, value, module)
        if accepted:
            if new is not None and isinstance(new, float) and math.isnan(new) and not _is_nan(default):
                raise ValueError(f"{owner}: {name} = {new} must be {_article(word)}, not NaN")
            return new
        words.append(word)
    must = " or ".join(dict.fromkeys(_article(word) for word in words))
    what = "None" if value is None else _article(type(value).__name__)
    if isinstance(value, type):
        what += f"; make one, {value.__name__}(..)"
    elif getattr(value, "ndim", 0) and ("number" in must or "False" in must):
        what += ", one for all samples: draw those with another value by a sampler of their own"
    raise ValueError(f"{owner}: {name} = {short(value)} must be {must}, not {what}")


@cache
def _alternatives(annotation: str) -> list[str]:
    """Split a union at the bars that stand in no brackets."""
    parts, depth = [""], 0
    for c in annotation:
        depth += (c == "[") - (c == "]")
        if c == "|" and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    return [part.strip() for part in parts]


def _as(kind: str, value: Any, module: str) -> tuple[bool, Any, str]:
    """Return whether a value is of a kind, the value as one, and the kind in words."""
    is_bool = isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")
    if kind == "None":
        return value is None, value, "None"
    if kind == "bool":
        return is_bool, bool(value) if is_bool else value, "True or False"
    if kind == "str":
        return isinstance(value, str), value, "string"
    if kind == "int":
        fits = isinstance(value, Integral) and not is_bool
        return fits, int(value) if fits else value, "whole number"
    if kind == "float":
        fits = isinstance(value, Real) and not is_bool and _in_range(value)
        plain = type(value) is float or (type(value) is int and abs(value) <= 1 << 53)
        return fits, float(value) if fits and not plain else value, "number"
    if kind == "tuple[float, float]":
        pair: Any = cast(Any, value) if type(value) in (tuple, list) else ()  # type() narrows nothing
        found = [_as("float", v, module) for v in pair]
        fits = len(found) == 2 and all(ok and not _is_nan(float(v)) for ok, v, _ in found)
        return fits, tuple(v for _, v, _ in found) if fits else value, "pair of numbers"
    if kind == "tuple[float, ...]":
        several: Any = cast(Any, value) if type(value) in (tuple, list) else ()
        found = [_as("float", v, module) for v in several]
        fits = bool(found) and all(ok and not _is_nan(float(v)) for ok, v, _ in found)
        return fits, tuple(float(v) for _, v, _ in found) if fits else value, "list of numbers"
    if kind.startswith("Callable"):
        return callable(value), value, "function"
    if kind.startswith(("dict[", "Mapping[")):
        return isinstance(value, Mapping), value, "dict"
    meant: Any = sys.modules[module]
    for name in kind.split("."):
        meant = getattr(meant, name, None) if name.isidentifier() else None
    if not isinstance(meant, type) or meant is Any:
        return True, value, kind  # not ours to judge
    if getattr(meant, "_is_protocol", False):
        members = {k: v for k, v in vars(meant).items() if not k.startswith("_") or k == "__call__"}
        fits = not isinstance(value, type) and all(hasattr(value, k) for k in members)
        fits = fits and all(callable(getattr(value, k)) for k, v in members.items() if inspect.isfunction(v))
        return fits, value, meant.__name__
    if meant.__name__ == "Tensor":  # a sparse one or one without memory lacks most operations, each in words of its own
        tensor: Any = cast(Any, value)
        fits = isinstance(tensor, meant) and not tensor.is_meta and str(tensor.layout) == "torch.strided"
        return fits, value, "dense Tensor" if isinstance(tensor, meant) else "Tensor"
    return isinstance(value, meant), value, meant.__name__


def _in_range(value: Any) -> bool:
    try:
        float(value)
    except OverflowError:  # an integer beyond every float
        return False
    return True


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _article(word: str) -> str:
    plain = word in ("None", "True or False")
    return word if plain else f"an {word}" if word[0] in "AEIOUaeiou" else f"a {word}"


def short(value: Any, limit: int = 60) -> str:
    """Return a value in one short line, for a message."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # an integer of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= limit else text[: limit - 3] + "..."
