"""What an artifact means: :class:`Artifact` to and from the JSON document that ``docs/ARTIFACT.md`` specifies.

Decoding trusts nothing: every object has exactly its keys, every value its kind and range, before anything is built
from it. What a *graph* may hold is not judged here but by :func:`hce_engine.graph.verify`, once the arrays are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from .. import bitpack
from ..dtypes import DTYPES
from ..errors import ArtifactError, InputError
from ..graph import OPS, Graph, Member, Node, TensorSpec
from ..preprocess import InputSpec
from .container import TENSOR_LIMIT, Entry

SCHEMA_VERSION = 1
NODE_LIMIT = 8192
MEMBER_LIMIT = 256
DIMENSION_LIMIT = 1 << 20
ELEMENT_LIMIT = 1 << 31
TEXT_LIMIT = 65536  # characters of a string in provenance, where a whole recipe may stand
ENSEMBLE_RULES = ("mean-logits",)
_BUILD_AGAIN = "the file was edited or written by another program; build it again"


@dataclass(frozen=True)
class Artifact:
    """Everything a ``.hce`` file holds.

    graph: lowered and verified.  input: the images it takes.  classes: one name per logit, or None.
    ensemble: how voting members' logits become a prediction; ``mean-logits`` is the only rule.
    ledger: :func:`hce_engine.ledger.ledger`.  provenance: recipe, seeds, versions.  accuracy: as measured at build,
    keyed by member and ``ensemble``. The last three are JSON values and say nothing that running the graph needs.
    """

    graph: Graph
    input: InputSpec
    classes: tuple[str, ...] | None = None
    ensemble: str = "mean-logits"
    ledger: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    accuracy: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stored:
    """A parameter as the document describes it: element type, logical shape, digest of its bytes in the file."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str

    @property
    def entry(self) -> Entry:
        return stored_entry(self.dtype, self.shape)


@dataclass(frozen=True)
class Outline:
    """A decoded document whose arrays are not read yet: nodes without params, and ``stored`` by tensor name."""

    artifact: Artifact
    stored: Mapping[str, Stored]


def tensor_name(node: str, param: str) -> str:
    """Name in the file; a node's name holds no slash."""
    return f"{node}/{param}"


def param_dtype(op: str, param: str, attrs: Mapping[str, Any]) -> str:
    """Element type in storage: f32, s32, or for int8 codes the node's ``weight_dtype``."""
    return {"float32": "f32", "int32": "s32"}.get(OPS[op].params[param]) or attrs["weight_dtype"]


def stored_entry(dtype: str, shape: tuple[int, ...]) -> Entry:
    """Codes become bytes ``[shape[0], row_bytes]`` (:mod:`hce_engine.bitpack`); f32 and s32 keep their shape."""
    if DTYPES[dtype].is_weight_code:
        return Entry("U8", (shape[0], bitpack.row_bytes(prod(shape[1:]), dtype)))
    return Entry("F32" if dtype == "f32" else "I32", shape)


def encode(artifact: Artifact, digests: Mapping[str, str]) -> dict[str, Any]:
    """The document of an artifact whose graph is verified; ``digests`` holds the SHA-256 of each stored tensor."""
    image = artifact.input
    return {
        "schema_version": SCHEMA_VERSION,
        "input": {
            "kind": image.kind, "shape": list(image.shape), "mean": list(image.mean), "std": list(image.std),
            "low": image.low, "high": image.high, "resize": image.resize,
        },
        "ensemble": artifact.ensemble,
        "classes": None if artifact.classes is None else list(artifact.classes),
        "members": [{"name": m.name, "output": m.output, "role": m.role} for m in artifact.graph.members],
        "nodes": [_encode_node(node, digests) for node in artifact.graph.nodes],
        "ledger": artifact.ledger,
        "provenance": artifact.provenance,
        "accuracy": artifact.accuracy,
    }


def _encode_node(node: Node, digests: Mapping[str, str]) -> dict[str, Any]:
    params = {
        key: {"dtype": param_dtype(node.op, key, node.attrs), "shape": list(value.shape),
              "sha256": digests[tensor_name(node.name, key)]}
        for key, value in node.params.items()
    }
    spec = node.spec
    return {
        "name": node.name, "op": node.op, "inputs": list(node.inputs), "attrs": dict(node.attrs), "params": params,
        "spec": {"shape": list(spec.shape), "dtype": spec.dtype, "scale": spec.scale, "zero_point": spec.zero_point},
        "source": node.source,
    }


def decode(value: Any, who: str) -> Outline:
    """The outline of a document; raises ArtifactError that names the offending place."""
    if isinstance(value, dict) and _is_int(value.get("schema_version")) and value["schema_version"] != SCHEMA_VERSION:
        raise ArtifactError(who, expected=f"schema version {SCHEMA_VERSION}", got=str(value["schema_version"]),
                            fix="build it again, or install the version of hce_engine that wrote it")
    document = _fields(value, _DOCUMENT, who, "document")
    image = _fields(document["input"], _INPUT, who, "input")
    try:
        spec = InputSpec(
            image["kind"], tuple(image["shape"]), tuple(image["mean"]), tuple(image["std"]), image["low"], image["high"],
            image["resize"],
        )
    except InputError as error:
        raise ArtifactError(f"{who}: input", expected=error.expected, got=error.got, fix=_BUILD_AGAIN) from None
    members = [_fields(m, _MEMBER, who, f"members[{i}]") for i, m in enumerate(document["members"])]
    nodes: list[Node] = []
    stored: dict[str, Stored] = {}
    for i, item in enumerate(document["nodes"]):
        node, params = _decode_node(item, who, f"nodes[{i}]")
        nodes.append(node)
        stored.update({tensor_name(node.name, key): param for key, param in params.items()})
    if len(stored) > TENSOR_LIMIT:
        raise ArtifactError(who, expected=f"at most {TENSOR_LIMIT} tensors", got=str(len(stored)), fix=_BUILD_AGAIN)
    classes = document["classes"]
    return Outline(
        Artifact(
            Graph(tuple(nodes), tuple(Member(**m) for m in members)), spec, None if classes is None else tuple(classes),
            document["ensemble"], document["ledger"], document["provenance"], document["accuracy"],
        ),
        stored,
    )


def _decode_node(item: Any, who: str, where: str) -> tuple[Node, dict[str, Stored]]:
    value = _fields(item, _NODE, who, where)
    op, attrs = value["op"], value["attrs"]
    if op not in OPS:
        raise ArtifactError(f"{who}: {where}", expected="an operation of this version", got=op, fix=_BUILD_AGAIN)
    if "weight_dtype" in OPS[op].attrs and attrs.get("weight_dtype") not in ("s3", "s4", "s8"):
        raise ArtifactError(f"{who}: {where}", expected="weight_dtype s3, s4 or s8",
                            got=repr(attrs.get("weight_dtype"))[:80], fix=_BUILD_AGAIN)
    if set(value["params"]) != set(OPS[op].params):
        raise ArtifactError(f"{who}: {where}", expected=f"parameters {sorted(OPS[op].params)}",
                            got=str(sorted(value["params"]))[:200], fix=_BUILD_AGAIN)
    params = {}
    for key, described in value["params"].items():
        param = _fields(described, _PARAM, who, f"{where}.params.{key}")
        if param["dtype"] != param_dtype(op, key, attrs):
            raise ArtifactError(f"{who}: {where}.params.{key}", expected=f"type {param_dtype(op, key, attrs)}",
                                got=param["dtype"], fix=_BUILD_AGAIN)
        params[key] = Stored(param["dtype"], tuple(param["shape"]), param["sha256"])
    spec = _fields(value["spec"], _SPEC, who, f"{where}.spec")
    yields = TensorSpec(tuple(spec["shape"]), spec["dtype"], spec["scale"], spec["zero_point"])
    return Node(value["name"], op, tuple(value["inputs"]), yields, attrs, {}, value["source"]), params


def fill(outline: Outline, arrays: Mapping[str, np.ndarray]) -> Artifact:
    """The artifact with its arrays, not yet verified."""
    graph = outline.artifact.graph.map(
        lambda n: Node(n.name, n.op, n.inputs, n.spec, n.attrs, {k: arrays[tensor_name(n.name, k)] for k in OPS[n.op].params},
                       n.source)
    )
    a = outline.artifact
    return Artifact(graph, a.input, a.classes, a.ensemble, a.ledger, a.provenance, a.accuracy)


Rule = tuple[Callable[[Any], bool], str]


def _fields(value: Any, rules: Mapping[str, Rule], who: str, where: str) -> dict[str, Any]:
    """``value`` if it is an object with exactly the keys of ``rules`` and each value passes."""
    if not isinstance(value, dict) or value.keys() != rules.keys():
        got = str(sorted(value))[:200] if isinstance(value, dict) else type(value).__name__
        raise ArtifactError(f"{who}: {where}", expected=f"exactly the keys {sorted(rules)}", got=got, fix=_BUILD_AGAIN)
    for key, (holds, what) in rules.items():
        if not holds(value[key]):
            raise ArtifactError(f"{who}: {where}.{key}", expected=what, got=repr(value[key])[:80], fix=_BUILD_AGAIN)
    return value


def _is_int(v: Any) -> bool:
    return type(v) is int


def _is_number(v: Any) -> bool:
    return type(v) in (int, float)  # finite by the JSON reader


def _is_name(v: Any) -> bool:
    """Printable, so that showing it cannot drive a terminal."""
    return isinstance(v, str) and len(v) <= 300 and v.isprintable()


def _is_text(v: Any) -> bool:
    return isinstance(v, str) and len(v) <= TEXT_LIMIT and all(line.isprintable() for line in v.replace("\t", " ").split("\n"))


def _is_shape(v: Any) -> bool:
    ints = isinstance(v, list) and 1 <= len(v) <= 4 and all(_is_int(d) and 1 <= d <= DIMENSION_LIMIT for d in v)
    return ints and prod(v) <= ELEMENT_LIMIT


def _is_digest(v: Any) -> bool:
    return isinstance(v, str) and len(v) == 64 and set(v) <= set("0123456789abcdef")


def _is_free(v: Any) -> bool:
    """Any JSON value of printable text; depth and numbers are bounded by the JSON reader."""
    if isinstance(v, dict):
        return all(_is_name(k) and _is_free(item) for k, item in v.items())
    return all(map(_is_free, v)) if isinstance(v, list) else not isinstance(v, str) or _is_text(v)


def _is_attrs(v: Any) -> bool:
    """Scalars and flat lists of them; which ones an operation takes is verify's question."""
    def flat(x: Any) -> bool:
        return x is None or _is_number(x) or _is_name(x)

    return isinstance(v, dict) and all(flat(x) or (isinstance(x, list) and all(map(flat, x))) for x in v.values())


def _list_of(holds: Callable[[Any], bool], limit: int) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, list) and len(v) <= limit and all(map(holds, v))


def _is_object(v: Any) -> bool:
    return isinstance(v, dict)


_NAME: Rule = (_is_name, "printable text of at most 300 characters")
_SHAPE: Rule = (_is_shape, "1 to 4 sizes from 1 to 2^20, at most 2^31 elements")
_NUMBERS: Rule = (_list_of(_is_number, DIMENSION_LIMIT), "a list of numbers")
_FREE: Rule = (lambda v: _is_object(v) and _is_free(v), "an object of JSON values with printable text")
_PARAM: Mapping[str, Rule] = {"dtype": _NAME, "shape": _SHAPE, "sha256": (_is_digest, "64 hexadecimal digits")}
_SPEC: Mapping[str, Rule] = {
    "shape": _SHAPE, "dtype": (lambda v: isinstance(v, str) and v in DTYPES, "an element type"),
    "scale": (lambda v: v is None or _is_number(v), "a number or null"), "zero_point": (_is_int, "an integer"),
}
_NODE: Mapping[str, Rule] = {
    "name": _NAME, "op": _NAME, "inputs": (_list_of(_is_name, NODE_LIMIT), "a list of node names"),
    "attrs": (_is_attrs, "an object of numbers, names, nulls and lists of them"), "params": (_is_object, "an object"),
    "spec": (_is_object, "an object"), "source": (lambda v: v is None or _is_name(v), "null or a place in a source file"),
}
_MEMBER: Mapping[str, Rule] = {"name": _NAME, "output": _NAME, "role": _NAME}
_INPUT: Mapping[str, Rule] = {
    "kind": _NAME, "shape": _SHAPE, "mean": _NUMBERS, "std": _NUMBERS, "low": (_is_number, "a number"),
    "high": (_is_number, "a number"), "resize": _NAME,
}
_DOCUMENT: Mapping[str, Rule] = {
    "schema_version": (_is_int, "an integer"), "input": (_is_object, "an object"),
    "ensemble": (lambda v: isinstance(v, str) and v in ENSEMBLE_RULES, "one of " + ", ".join(ENSEMBLE_RULES)),
    "classes": (lambda v: v is None or _list_of(_is_name, DIMENSION_LIMIT)(v), "null or a list of printable names"),
    "members": (_list_of(_is_object, MEMBER_LIMIT), f"a list of at most {MEMBER_LIMIT} objects"),
    "nodes": (_list_of(_is_object, NODE_LIMIT), f"a list of at most {NODE_LIMIT} objects"),
    "ledger": _FREE, "provenance": _FREE, "accuracy": _FREE,
}
