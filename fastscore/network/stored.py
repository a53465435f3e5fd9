"""A network as torch.compile gets it: traced by a recipe, with weights of its own as its layers read them.

The weights are stored once, in bfloat16 where a layer reads that and with channels last, rather than cast in each call.
They are inputs of the compiled code, whose key knows nothing of them: for other weights of the same network they are
written over, in place, so that neither compiled code nor a recorded graph has to be made again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastscore.network.bf16 import Recipe, Traced, stored
from fastscore.network.jit import compiled
from fastscore.network.watch import tensors

# Graphs are the engine's, around the whole row; convolutions rarely gain from a search, which takes five times as long.
OPTIONS: dict[str, Any] = {
    "max_autotune": False, "coordinate_descent_tuning": False, "epilogue_fusion": True, "shape_padding": True,
    "triton.cudagraphs": False,
}  # fmt: skip


class Stored:
    """A traced network, compiled on its first call; called with the inputs of its trace.

    Args:
        net: the network, in eval mode, which is not changed.
        recipe: how it computes.
        example: inputs of the shapes that it will take.

    Raises:
        Exception: whatever torch.export makes of it.
    """

    def __init__(self, net: nn.Module, recipe: Recipe, example: tuple[Tensor, ...]) -> None:
        with torch.no_grad():
            self.module: Any = torch.export.export(Traced(net, recipe), example, strict=False).module()
        self.recipe, self.device = recipe, example[0].device
        self.sources: dict[str, str] = {}  # names of its own weights, and in the network
        self.complete = len(_named(net)) == len(list(tensors(net)))  # no tensors beside parameters and buffers
        self._store()
        self.run = compiled(self.module, "compile", self.device, OPTIONS)

    def load(self, net: nn.Module) -> None:
        """Read the weights of a network of the same structure."""
        named = dict(_named(net))
        with torch.no_grad():
            for own, source in self.sources.items():
                if source in named:  # and no number that the code has written out
                    getattr(self.module, own).copy_(named[source])

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Evaluate; no gradients are recorded."""
        with torch.no_grad():
            return self.run(*inputs)

    def _store(self) -> None:
        """Let the traced code read weights of its own, already cast where it would cast them."""
        graph = self.module.graph
        for node in [n for n in graph.nodes if n.op == "get_attr"]:
            weight = _attribute(self.module, node.target)
            if not isinstance(weight, Tensor):  # code, of a region of its own
                continue
            reads: dict[torch.dtype, list[Any]] = {}
            for user in node.users:
                reads.setdefault(_cast(user) or weight.dtype, []).append(user)
            for dtype, users in reads.items():
                own = f"own_{len(self.sources)}"
                self.module.register_buffer(own, stored(weight.to(dtype), self.recipe))
                self.sources[own] = str(node.target).removeprefix("net.")
                with graph.inserting_after(node):
                    read = graph.get_attr(own)
                for user in users:
                    if dtype == weight.dtype:
                        user.replace_input_with(node, read)
                    else:
                        user.replace_all_uses_with(read)
                        graph.erase_node(user)
            graph.erase_node(node)
        self.module.delete_all_unused_submodules()
        for m in self.module.modules():  # as a run has them, so that compiled code sees no difference
            m.training = False
        self.module.recompile()


def _named(net: nn.Module) -> list[tuple[str, Tensor]]:
    return [*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)]


def _cast(node: Any) -> torch.dtype | None:
    """Return the dtype to which an operation casts, if that is all it does; torch 2.6 traces ``to`` as ``_to_copy``."""
    if node.target is torch.ops.aten.to.dtype and len(node.args) == 2:
        return node.args[1]
    return node.kwargs["dtype"] if node.target is torch.ops.aten._to_copy.default and len(node.kwargs) == 1 else None


def _attribute(module: Any, name: str) -> Any:
    for part in name.split("."):
        module = getattr(module, part)
    return module
