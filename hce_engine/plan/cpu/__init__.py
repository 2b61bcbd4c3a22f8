"""The CPU's plan: which kernel computes each step, where its memory lies, and why."""

from .build import build_plan
from .plan import Map, Plan, Step

__all__ = ["Map", "Plan", "Step", "build_plan"]
