"""Maps and layers in device memory: what they are, and one tensor of bytes per plane."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .formats import SLACK, MapFormat, pack_map, unpack_map
from .launch import INT32_LIMIT, require
from .layer import LayerArrays


@dataclass(frozen=True)
class DeviceMap:
    """``batch`` images of ``form``; planes: int8 ``[batch * image_bytes + SLACK or more]`` each, 16-byte aligned."""

    form: MapFormat
    batch: int
    planes: tuple[torch.Tensor, ...]

    def __post_init__(self) -> None:
        require("map", len(self.planes) == len(self.form.image_bytes), f"{len(self.form.image_bytes)} planes", len(self.planes))
        for plane, size in zip(self.planes, self.form.image_bytes, strict=True):
            require("map", plane.dtype == torch.int8 and plane.dim() == 1, "planes of int8 [bytes]", f"{plane.dtype} {tuple(plane.shape)}")
            require("map", self.batch * size <= INT32_LIMIT, f"planes of at most {INT32_LIMIT} bytes; use a smaller batch", self.batch * size)
            require("map", plane.numel() >= self.batch * size + SLACK, f"{self.batch * size} bytes and {SLACK} of slack", plane.numel())

    @property
    def plane0(self) -> torch.Tensor:
        return self.planes[0]

    @property
    def plane1(self) -> torch.Tensor:
        """Plane 1, or plane 0 for kernels that will not look at it."""
        return self.planes[-1]

    def codes(self) -> np.ndarray:
        """uint8 ``(N, C, H, W)`` on the host."""
        pairs = zip(self.planes, self.form.image_bytes, strict=True)
        return unpack_map([p[: self.batch * size].cpu().numpy() for p, size in pairs], self.form)


def empty_map(form: MapFormat, batch: int, device: torch.device | str, pad_code: np.ndarray | int = 0, fill: int = 0) -> DeviceMap:
    """A map whose halo holds ``pad_code`` and whose pixels hold the byte ``fill``."""
    codes = np.zeros((1, form.channels, form.height, form.width), np.uint8)
    planes = []
    for packed, size, pixel in zip(pack_map(codes, form, pad_code), form.image_bytes, form.pixel_bytes, strict=True):
        image = packed.reshape(form.rows, form.columns, pixel).copy()
        top, left = form.halo[:2]
        image[top : top + form.height, left : left + form.width] = fill & 255
        plane = torch.full((batch * size + SLACK,), fill, dtype=torch.int8, device=device)
        # One image crosses to the device; it is repeated there.
        one = torch.from_numpy(image.reshape(1, size).view(np.int8)).to(device)
        plane[: batch * size].view(batch, size).copy_(one)
        planes.append(plane)
    return DeviceMap(form, batch, tuple(planes))


def map_of_codes(codes: np.ndarray, form: MapFormat, device: torch.device | str, pad_code: np.ndarray | int = 0) -> DeviceMap:
    """A map that holds uint8 codes ``(N, C, H, W)``; slack and padding channels hold noise, which no result may show."""
    noise = np.random.default_rng(0)
    planes = []
    for packed, size in zip(pack_map(codes, form, pad_code), form.image_bytes, strict=True):
        plane = noise.integers(-128, 128, len(codes) * size + SLACK, dtype=np.int8)
        plane[: len(codes) * size] = packed.reshape(-1).view(np.int8)
        planes.append(torch.from_numpy(plane).to(device))
    return DeviceMap(form, len(codes), tuple(planes))


@dataclass(frozen=True)
class DeviceLayer:
    """The constants of a layer, as tensors: weight uint8 as int8 [bytes], bias int32, multiplier and offset float32."""

    arrays: LayerArrays
    weight: torch.Tensor
    bias: torch.Tensor
    multiplier: torch.Tensor
    offset: torch.Tensor


def layer_on(arrays: LayerArrays, device: torch.device | str) -> DeviceLayer:
    def tensor(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(device)

    return DeviceLayer(
        arrays, tensor(arrays.weight.view(np.int8)), tensor(arrays.bias), tensor(arrays.multiplier), tensor(arrays.offset)
    )
