"""Capture: a ``torch.nn.Module`` in eval mode becomes a float32 Graph of the closed set of operations.

``torch.export`` traces the module (also through lambdas, in-place arithmetic and calls of ``torch.nn.functional``), its
functional form takes away mutation and aliasing, and :mod:`.aten` translates what is left one call at a time. The
result is ``input -> normalize -> the module's operations``: the module itself sees normalised float32 NCHW images.
Batch norms stay nodes of their own; :func:`hce_engine.graph.passes.lower` folds them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx

from ..errors import InputError, UnsupportedError
from ..graph import Graph, Member, verify
from ..graph.passes import drop_dead
from ..preprocess import InputSpec
from .aten import translate
from .builder import Builder, Value

__all__ = ["capture"]

# Any number above one: tracing with a single image would let torch specialise on it, and a reshape that mixes images
# shows in the leading dimension.
_BATCH = 2


def capture(module: torch.nn.Module, input: InputSpec, *, member: str | Sequence[str] = "o") -> Graph:
    """The graph of ``module`` over images of ``input``, verified; ``module`` is left as it was.

    member: name of the member that the module's output becomes; one name per output for a module with several exits.
    Node names are module paths (``layer1.0.conv1``), ``source`` is the ``file:line`` that called the operation.

    Raises UnsupportedError, which names the operation, its line and what is supported, for anything outside the closed
    set, and InputError for a module that does not run on such images.
    """
    names = (member,) if isinstance(member, str) else tuple(member)
    program = _export(module, input)
    signature = program.graph_signature
    constants: dict[str, Any] = {**program.constants, **dict(program.state_dict)}
    owners = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    lifted = {**owners, **signature.inputs_to_lifted_tensor_constants}
    builder = Builder(
        [input.input_node(), input.normalize_node("normalize", "image")], batch=_BATCH, owner=type(module).__name__
    )
    outputs = [n for n in program.graph.output_node().args[0] if getattr(n, "name", None) in signature.user_outputs]
    if len(outputs) != len(names):
        raise InputError(
            f"capture of {type(module).__name__}", expected=f"one output per member name, {', '.join(names)}",
            got=f"{len(outputs)} tensors", fix="return one tensor of logits, or pass one member name per output",
        )
    needed = _needed(outputs)
    values: dict[fx.Node, Value] = {}
    for node in program.graph.nodes:
        if node not in needed:
            continue
        if node.op == "placeholder":
            if node.name in lifted:
                values[node] = constants[lifted[node.name]].detach()
                builder.paths[node] = owners.get(node.name, "")
            else:
                values[node] = "normalize"
        else:
            values[node] = translate(builder, node, values)
    members = tuple(Member(name, builder.logits(node, values[node])) for name, node in zip(names, outputs, strict=True))
    return verify(drop_dead(Graph(tuple(builder.nodes), members)))


def _needed(outputs: Sequence[fx.Node]) -> set[fx.Node]:
    seen: set[fx.Node] = set()
    stack = list(outputs)
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack.extend(node.all_input_nodes)
    return seen


@contextmanager
def _in_eval_mode(module: torch.nn.Module) -> Iterator[None]:
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for m, training in modes.items():
            m.training = training


def _export(module: torch.nn.Module, input: InputSpec) -> torch.export.ExportedProgram:
    who, shape = f"capture of {type(module).__name__}", (_BATCH, *input.shape)
    first = next(module.parameters(), None)
    images = torch.zeros(shape, device=first.device if first is not None else "cpu")
    with _in_eval_mode(module), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside torch.export, about which a user can do nothing
        try:
            program = torch.export.export(module, (images,), strict=False)
            return program.run_decompositions({})
        except Exception as error:  # torch.export raises errors of many unrelated types
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
            if (failure := _eager_failure(module, images)) is not None:
                raise InputError(
                    who, expected=f"a module that runs on float32 images {shape}", got=failure,
                    fix="correct the module, or state the input shape it is made for",
                ) from error
            raise UnsupportedError(
                who, expected="a module that torch.export can trace without dependence on the pixels' values",
                got=reason, fix="replace branches on tensor values by arithmetic",
            ) from error


def _eager_failure(module: torch.nn.Module, images: torch.Tensor) -> str | None:
    try:
        with torch.no_grad():
            module(images)
    except Exception as error:  # the user's own forward may raise anything
        return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:300]}"
    return None
