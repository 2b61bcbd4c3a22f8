"""Quantization of networks to 2 to 8 bits: post-training and quantization-aware."""

from .calibrate import calibrate
from .layout import Layout, layout
from .methods import METHODS
from .module import QuantModule
from .progressive import lowered
from .quantizer import Quantizer

__all__ = ["METHODS", "Layout", "QuantModule", "Quantizer", "calibrate", "layout", "lowered"]
