"""Programs of float members that run once, on the extension's kernels on a GPU or built for the host."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import torch

from hce_engine.backends.cuda.lanes_program import LanesArena, LanesConstants, LanesProgram
from hce_engine.backends.cuda.nhwc_program import NhwcConstants, NhwcProgram
from hce_engine.graph import Graph
from hce_engine.plan.cuda.lanes_plan import LANES, NHWC
from hce_engine.plan.cuda.layout import build_float_plan

PROGRAMS = {LANES: (LanesProgram, LanesConstants), NHWC: (NhwcProgram, NhwcConstants)}
DEVICE = "cuda:0" if torch.cuda.is_available() else "cpu"


def planes(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 3, 1, 2) if images.dtype == np.uint8 else images


def program_of(
    graph: Graph, images: np.ndarray, extension: ModuleType, convolution: str = "auto", layout: str = LANES
) -> LanesProgram:
    """A program that ran once on poisoned memory."""
    plan = build_float_plan(graph, len(images), layout, convolution=convolution)
    arena = LanesArena(plan, DEVICE, poison=True)
    tensor = torch.from_numpy(images).to(DEVICE)
    kind, constants = PROGRAMS[layout]
    program = kind(plan, arena, constants(extension, DEVICE), tensor, poison=True)
    program()
    return program


def run(
    graph: Graph, images: np.ndarray, extension: ModuleType, convolution: str = "auto", layout: str = LANES
) -> dict[str, np.ndarray]:
    program = program_of(graph, images, extension, convolution, layout)
    return {name: z.cpu().numpy() for name, z in program.logits.items()}
