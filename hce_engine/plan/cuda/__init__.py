"""Plans for the GPU: which kernel computes each step, where its maps lie, and the least time that it takes."""

from .lowering import build_plan, require_runnable
from .plan import Layer, Logits, Map, Plan, Step, Weights
from .roofline import GPUS, Gpu, bound

__all__ = [
    "GPUS", "Gpu", "Layer", "Logits", "Map", "Plan", "Step", "Weights", "bound", "build_plan", "require_runnable",
]
