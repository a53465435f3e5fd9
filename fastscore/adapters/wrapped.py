"""Networks of any calling convention as ``net(u, c_noise, cond)``, which a ScoreModel takes; picklable."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastscore.errors import short

_OPERATORS: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_GRAMMAR = (
    "arguments in order or by keyword, each a name (x, t, labels, cond, or that of a condition), a constant, sums and "
    'products of them, round(..), one_hot(labels, K), or {"name": ..}'
)
# An argument as nested tuples, which pickle and which torch.export reads through: (kind, ..).
Argument = tuple[Any, ...]
Out = None | str | int | Callable[[Any], Any] | tuple[Any, ...]


def wrap(net: Callable[..., Any], call: str = "x, t", out: Out = None) -> Wrapped:
    """Return a network of another calling convention as ``net(u, c_noise, cond)``.

    It gives a network what it is used to and reads what it returns; what the numbers mean is the parametrization's.

        ScoreModel(wrap(unet, "x, t, class_labels", out="sample"), (3, 32, 32), fs.discrete_vp(), classes=10)
        wrap(net, "x, timestep=1000 * t, y=labels, encoder_hidden_states=tokens, return_dict=False", out=0)

    Args:
        net: a module, which keeps its parameters, or a function.
        call: the arguments, in order or by keyword, as they would stand in Python. ``x`` is u [N, *shape], ``t`` (or
            ``sigma``) the label c_noise [N], ``r`` that of a step's end (of a model with two_times), ``labels`` (or
            ``class_labels``) int64 [N], ``cond`` the condition as it is, and each name of a condition that is a dict
            that tensor. Beside names there are constants (``return_dict=False``), + - * / (``1000 * t``, ``1 - t``),
            ``round(t)`` (int64, for tables of steps), ``one_hot(labels, K)`` [N, K] in the dtype of x, where a label K,
            the null class, is all zeros, and ``{"text_embeds": pooled}``. It is parsed, never run as Python.
        out: what to take of what is returned: an attribute or key ("sample"), an index (0), "first_half" of the
            channels (of a network that also learns the variance), a function that pickles, or several in turn,
            ("sample", "first_half"). None: the output is the tensor.

    c_noise reaches the network in float32, or in float64 if x is in that: a label in bfloat16 would not tell 999 from
    1000. Conditions keep the dtype that they were given in.

    Raises:
        ValueError: a ``call`` that cannot be parsed or that the network's signature does not take; and when it is
            called, a name that the run did not give, or an output without what ``out`` names.
    """
    return Wrapped(net, call, out)


class Wrapped(nn.Module):
    """A network behind its calling convention; see ``wrap``."""

    def __init__(self, net: Callable[..., Any], call: str = "x, t", out: Out = None) -> None:
        super().__init__()
        if not callable(net):
            raise ValueError(f"wrap: net is a {type(net).__name__}; it must be a network or a function")
        self.net, self.call, self.out = net, call, out if isinstance(out, tuple) else () if out is None else (out,)
        for part in self.out:
            if isinstance(part, bool) or not (isinstance(part, str | int) or callable(part)):
                raise ValueError(f"wrap: out = {short(part)} must be a name, an index, 'first_half' or a function")
        self.positional, self.keywords = _parsed(call)
        self._fits()

    def forward(self, u: Tensor, c_noise: Tensor, cond: Any = None) -> Any:
        t = c_noise if u.dtype == torch.float64 else c_noise.to(torch.float32)
        given = _given(u, t, cond)
        positional = [self._value(argument, given) for argument in self.positional]
        keywords = {name: self._value(argument, given) for name, argument in self.keywords}
        result = self.net(*positional, **keywords)
        for part in self.out:
            result = _taken(result, part, u)
        return result

    def extra_repr(self) -> str:
        return f"call={self.call!r}, out={self.out}"

    def _value(self, argument: Argument, given: Mapping[str, Any]) -> Any:
        kind, *parts = argument
        if kind == "constant":
            return parts[0]
        if kind == "name":
            if parts[0] not in given:
                raise ValueError(
                    f"wrap: the network is called as ({self.call}), and this run gives no {parts[0]!r}: it has "
                    f"{', '.join(sorted(given))}. Labels need ScoreModel(classes=..), other conditions cond_shape="
                )
            return given[parts[0]]
        if kind == "dict":
            return {name: self._value(part, given) for name, part in parts[0]}
        first = self._value(parts[0], given)
        if kind == "round":
            return torch.round(first).to(torch.int64)
        if kind == "one_hot":
            return (first[:, None] == torch.arange(parts[1], device=first.device)).to(given["x"].dtype)
        second = self._value(parts[1], given)
        if kind == "+":
            return first + second
        if kind == "-":
            return first - second
        return first * second if kind == "*" else first / second

    def _fits(self) -> None:
        """Raise ValueError if the network's own signature does not take what ``call`` gives."""
        try:
            signature = inspect.signature(self.net.forward if isinstance(self.net, nn.Module) else self.net)
        except (TypeError, ValueError):  # nobody can look
            return
        try:
            signature.bind(*self.positional, **dict(self.keywords))
        except TypeError as error:
            raise ValueError(
                f"wrap: {type(self.net).__name__}{signature} cannot be called as ({self.call}): {error}"
            ) from None


def _given(u: Tensor, t: Tensor, cond: Any) -> dict[str, Any]:
    """Return what a run gives a network, by the names that ``call`` may use."""
    named: dict[str, Any] = {}
    if isinstance(cond, Mapping):
        named |= {**cond, "cond": cond}
    elif cond is not None:
        named["cond"] = cond
        if cond.ndim == 1 and not cond.is_floating_point():
            named["labels"] = cond
    if "labels" in named:
        named.setdefault("class_labels", named["labels"])
    times = {"t": t, "sigma": t} if t.ndim == 1 else {"t": t[:, 0], "r": t[:, 1]}  # two of a model with two_times
    return named | {"x": u} | times


def _taken(result: Any, part: Any, u: Tensor) -> Any:
    """Return a part of what a network returned."""
    if part == "first_half":
        if not isinstance(result, Tensor) or result.ndim < 2 or result.shape[1] != 2 * u.shape[1]:
            what = tuple(result.shape) if isinstance(result, Tensor) else f"a {type(result).__name__}"
            raise ValueError(f"wrap: out = 'first_half' needs twice the channels of {tuple(u.shape)}; it was {what}")
        return result[:, : u.shape[1]]
    try:
        if isinstance(part, str):
            return result[part] if isinstance(result, Mapping) else getattr(result, part)
        return result[part] if isinstance(part, int) else part(result)
    except (KeyError, IndexError, AttributeError) as error:
        hint = "; a tensor needs no out" if isinstance(result, Tensor) else ""
        raise ValueError(f"wrap: out = {part!r}, and the network returned a {type(result).__name__}{hint}") from error


def _parsed(call: str) -> tuple[tuple[Argument, ...], tuple[tuple[str, Argument], ...]]:
    """Return the positional arguments and those by keyword of a calling convention."""
    try:
        tree = ast.parse(f"_({call})", mode="eval").body
    except (SyntaxError, ValueError):
        tree = None
    if not isinstance(call, str) or not isinstance(tree, ast.Call) or ast.unparse(tree.func) != "_":
        raise ValueError(f"wrap: call = {call!r} cannot be read; it lists {_GRAMMAR}")
    names = [node.arg for node in tree.keywords]
    if None in names or len(set(names)) < len(names):
        raise ValueError(f"wrap: call = {call!r} has ** or a keyword twice; it lists {_GRAMMAR}")
    positional = tuple(_argument(node, call) for node in tree.args)
    keywords = tuple((str(node.arg), _argument(node.value, call)) for node in tree.keywords)
    return positional, keywords


def _argument(node: ast.expr, call: str) -> Argument:
    if isinstance(node, ast.Name):
        return ("name", node.id)
    if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float | str | None):
        return ("constant", node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return ("*", ("constant", -1), _argument(node.operand, call))
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return (_OPERATORS[type(node.op)], _argument(node.left, call), _argument(node.right, call))
    if isinstance(node, ast.Dict) and all(isinstance(k, ast.Constant) and isinstance(k.value, str) for k in node.keys):
        names = [k.value for k in node.keys if isinstance(k, ast.Constant)]
        return ("dict", tuple((k, _argument(v, call)) for k, v in zip(names, node.values, strict=True)))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        name, arguments = node.func.id, node.args
        if name == "round" and len(arguments) == 1:
            return ("round", _argument(arguments[0], call))
        if name == "one_hot" and len(arguments) == 2:
            size = arguments[1]
            if isinstance(size, ast.Constant) and type(size.value) is int and size.value > 0:
                return ("one_hot", _argument(arguments[0], call), size.value)
    raise ValueError(f"wrap: {ast.unparse(node)!r} in call = {call!r} cannot be read; it lists {_GRAMMAR}")
