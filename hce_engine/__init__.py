"""HCE Engine: compressed CNN ensembles that run as fast as their FLOPs say.

    engine = hce_engine.load("model.hce")          logits = engine(images)
    hce_engine.build({"q": quantized, "s": pruned}, example, path="model.hce")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Artifact", "Engine", "InputSpec", "__version__", "build", "load"]

if TYPE_CHECKING:
    from .artifact import Artifact
    from .builder import build
    from .engine import Engine, load
    from .preprocess import InputSpec

# Imported at first use: the command line must not wait for torch to print its help.
_HOME = {"Artifact": "artifact", "Engine": "engine", "InputSpec": "preprocess", "build": "builder", "load": "engine"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
