"""Plans for the GPU: which kernel computes each step, where its maps lie, and the least time that it takes."""

from .ensemble_plan import EnsemblePlan, build_ensemble_plan, require_runnable
from .lanes_plan import LanesPlan
from .lowering import build_plan
from .plan import Layer, Logits, Map, Plan, Step, Weights
from .roofline import GPUS, Gpu, bound

__all__ = [
    "GPUS", "EnsemblePlan", "Gpu", "LanesPlan", "Layer", "Logits", "Map", "Plan", "Step", "Weights", "bound",
    "build_ensemble_plan", "build_plan", "require_runnable",
]
