"""Every case of the compile check. A kernel that is missing here is a kernel that nothing proves to compile."""

from __future__ import annotations

from .case import Case
from .conv_cases import conv_cases
from .map_cases import map_cases
from .product_cases import product_cases


def all_cases() -> list[Case]:
    return [*conv_cases(), *product_cases(), *map_cases()]
