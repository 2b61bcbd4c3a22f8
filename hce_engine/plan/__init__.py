"""Plans: which kernel computes each step, where its memory lies, and why. One folder per device; numpy only."""

from .components import components

__all__ = ["components"]
