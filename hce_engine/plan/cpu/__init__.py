"""The CPU's plan: which kernel computes each step, where its memory lies, and why."""

from .batches import SIZES, tiles
from .build import build_plan
from .plan import Map, Plan, Step

__all__ = ["SIZES", "Map", "Plan", "Step", "build_plan", "tiles"]
