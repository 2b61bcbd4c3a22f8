"""HCE Engine: compressed CNN ensembles that run as fast as their FLOPs say.

    import hce_engine as hce
    engine = hce.load("model.hce")
    logits = engine(images)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Artifact", "Engine", "HceError", "__version__", "build", "load"]

if TYPE_CHECKING:
    from .artifact import Artifact
    from .build import build
    from .engine import Engine, load
    from .errors import HceError

_HOMES = {"Artifact": "artifact", "Engine": "engine", "load": "engine", "HceError": "errors", "build": "build"}


def __getattr__(name: str) -> Any:
    # Looked up on first use: loading and running an artifact does not import torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
