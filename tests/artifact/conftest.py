"""A small artifact with every kind of storage: s3, s4 and s8 codes, int32, float32, three members, odd sizes."""

import numpy as np
import pytest

from hce_engine.artifact import Artifact
from hce_engine.graph import Graph, Member, Node, TensorSpec, merge, verify
from hce_engine.ledger import ledger
from hce_engine.preprocess import InputSpec

IMAGE = InputSpec("uint8_nhwc", (3, 9, 7), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
CONV = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1}


def quantized(rng: np.random.Generator) -> Graph:
    def params(dtype: str, *shape: int) -> dict[str, np.ndarray]:
        low, high = {"s3": (-4, 4), "s4": (-8, 8), "s8": (-128, 128)}[dtype]
        return {
            "weight": rng.integers(low, high, shape).astype(np.int8),
            "bias": rng.integers(-900, 900, shape[0]).astype(np.int32),
            "multiplier": (rng.random(shape[0]) / 4096).astype(np.float32),
        }

    def conv(name: str, inputs: tuple[str, ...], dtype: str, c: int, oc: int, qmax: int, out: TensorSpec, g: float) -> Node:
        bits = {"s3": 3, "s4": 4, "s8": 8}[dtype]
        attrs = {**CONV, "qmin": 0, "qmax": qmax, "weight_dtype": dtype, "bits": [bits, bits], "pad_code": [0] * c,
                 "residual_multiplier": g, "folded_norm": 1}
        return Node(name, "qconv2d", inputs, out, attrs, params(dtype, oc, c, 3, 3), "model.py:12")

    stream = TensorSpec((5, 9, 7), "u8", 0.05)
    nodes = (
        IMAGE.input_node(),
        conv("stem", ("image",), "s8", 3, 5, 255, stream, 0.0),
        Node("low", "qrecode", ("stem",), TensorSpec((5, 9, 7), "u3", 0.4), {"qmin": 0, "qmax": 7, "k": 8192}),
        conv("c1", ("low",), "s3", 5, 7, 15, TensorSpec((7, 9, 7), "u4", 0.3), 0.0),
        conv("c2", ("c1", "stem"), "s4", 7, 5, 255, stream, 0.5),
        Node("pool", "qglobal_avg_pool", ("c2",), TensorSpec((5, 1, 1), "u8", 0.05),
             {"qmin": 0, "qmax": 255, "multiplier": 0.015625}),
        Node("flat", "flatten", ("pool",), TensorSpec((5,), "u8", 0.05)),
        Node("fc", "qlinear", ("flat",), TensorSpec((4,)), {"weight_dtype": "s8", "bits": [8, 8]},
             {**params("s8", 4, 5), "offset": rng.random(4).astype(np.float32)}),
    )
    return Graph(nodes, (Member("q", "fc"),))


def floating(rng: np.random.Generator, name: str, width: int) -> Graph:
    def arrays(*shape: int) -> dict[str, np.ndarray]:
        return {"weight": rng.normal(size=shape).astype(np.float32), "bias": rng.normal(size=shape[0]).astype(np.float32)}

    nodes = (
        IMAGE.input_node(),
        IMAGE.normalize_node("norm", "image"),
        Node("conv", "conv2d", ("norm",), TensorSpec((width, 9, 7)), {**CONV, "min": 0, "max": None, "folded_norm": 1},
             arrays(width, 3, 3, 3)),
        Node("pool", "global_avg_pool", ("conv",), TensorSpec((width, 1, 1))),
        Node("flat", "flatten", ("pool",), TensorSpec((width,))),
        Node("fc", "linear", ("flat",), TensorSpec((4,)), {"min": None, "max": None}, arrays(4, width)),
    )
    return Graph(nodes, (Member(name, "fc"),))


def example_artifact(seed: int = 0) -> Artifact:
    rng = np.random.default_rng(seed)
    members = {"q": quantized(rng), "s": floating(rng, "s", 3), "o": floating(rng, "o", 8)}
    graph = verify(merge(members, {"o": "reference"}))
    return Artifact(
        graph, IMAGE, ("café", "b", "c", "d"), ledger=ledger(graph), provenance={"recipe": "seed = 0\nbits = 3", "seed": seed},
        accuracy={"q": 0.5, "s": 0.25, "o": 0.75, "ensemble": 0.75},
    )


@pytest.fixture(scope="session")
def artifact() -> Artifact:
    return example_artifact()
