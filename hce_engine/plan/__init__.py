"""Plans: which kernel computes each step, where its memory lies, and why."""

from .cpu import build_plan, components
from .plan import Map, Plan, Step

__all__ = ["Map", "Plan", "Step", "build_plan", "components"]
