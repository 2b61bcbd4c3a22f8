"""Programs of float members that run once, on the extension's kernels on a GPU or built for the host."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import torch

from hce_engine.backends.cuda.lanes_program import LanesArena, LanesConstants, LanesProgram
from hce_engine.graph import Graph
from hce_engine.plan.cuda.lanes_lowering import build_lanes_plan

DEVICE = "cuda:0" if torch.cuda.is_available() else "cpu"


def planes(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 3, 1, 2) if images.dtype == np.uint8 else images


def program_of(graph: Graph, images: np.ndarray, extension: ModuleType, convolution: str = "auto") -> LanesProgram:
    """A program that ran once on poisoned memory."""
    plan = build_lanes_plan(graph, len(images), convolution=convolution)
    arena = LanesArena(plan, DEVICE, poison=True)
    tensor = torch.from_numpy(images).to(DEVICE)
    program = LanesProgram(plan, arena, LanesConstants(extension, DEVICE), tensor, poison=True)
    program()
    return program


def run(graph: Graph, images: np.ndarray, extension: ModuleType, convolution: str = "auto") -> dict[str, np.ndarray]:
    return {name: z.cpu().numpy() for name, z in program_of(graph, images, extension, convolution).logits.items()}
