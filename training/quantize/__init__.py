"""Quantization of networks to 2 to 8 bits: post-training and quantization-aware."""

from .calibrate import calibrate, reestimate_bn
from .layout import Layout, layout
from .module import QuantModule
from .quantizer import Quantizer

__all__ = ["Layout", "QuantModule", "Quantizer", "calibrate", "layout", "reestimate_bn"]
