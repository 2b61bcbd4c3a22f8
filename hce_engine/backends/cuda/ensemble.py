"""Members of both kinds on the same images: quantized parts (program.py) and float parts (lanes_program.py), then the mean.

Parts know nothing of each other, so they may run at the same time; modes.py says how, and measures what is fastest.
"""

from __future__ import annotations

from types import ModuleType

import torch

from ...errors import InputError
from ...kernels.launch import Cost
from ...plan.cuda.ensemble_plan import EnsemblePlan, Part
from ...plan.cuda.lanes_plan import LANES, NHWC, LanesPlan
from ...plan.cuda.plan import Plan
from .lanes_program import LanesArena, LanesConstants, LanesProgram, current_stream, device_index
from .modes import MODES, Layouts, Prepared, prepare
from .nhwc_program import NhwcConstants, NhwcProgram
from .program import Arena, Constants, Program
from .runtime import Runtime
from .work import Work


class EnsembleProgram:
    """Programs of all parts of a plan and the mean of the voters.

    images: one static input for all.  logits: static outputs per member and for ``ensemble``, float32 ``(N, classes)``.
    mean: ((z_0 + z_1) + ...) * f32(1 / n) of the voters, as backends.reference.mean_logits; nothing for a single one.
    """

    def __init__(
        self, plan: EnsemblePlan, parts: list[Program | LanesProgram], images: torch.Tensor, extension: ModuleType, device: str,
        poison: bool = False,
    ) -> None:
        self.plan, self.parts, self.images, self.extension, self.device = plan, parts, images, extension, device
        made = {name: logits for part in parts for name, logits in part.logits.items()}
        self.logits = {name: made[name] for name in plan.members}
        if plan.mean_launches:
            fill = float("nan") if poison else 0.0
            self.logits["ensemble"] = torch.full((plan.batch, plan.classes), fill, dtype=torch.float32, device=device)
        else:
            self.logits["ensemble"] = self.logits[plan.voters[0]]

    @property
    def mean(self) -> list[Work]:
        written = 4 * self.logits["ensemble"].numel()
        work = Work(self.plan.voters, "ensemble_mean", Cost(self.plan.mean_bytes - written, written), self._start_mean)
        return [work] * self.plan.mean_launches

    def _start_mean(self) -> None:
        out = self.logits["ensemble"]
        self.extension.ensemble_mean(
            device_index(self.device), current_stream(self.device), out=out.data_ptr(), elements=out.numel(),
            members=[self.logits[name].data_ptr() for name in self.plan.voters],
        )


class Ensembles:
    """Makes programs of ensembles; weights and maps are shared between those of different batches."""

    def __init__(
        self, runtime: Runtime, constants: Constants, extension: ModuleType, mode: str, poison: bool, layouts: Layouts
    ) -> None:
        if mode not in MODES:
            raise InputError("cuda back end", expected=f"a mode of {', '.join(MODES)}", got=repr(mode), fix="choose one of them")
        self.runtime, self.extension, self.mode, self.poison = runtime, extension, mode, poison
        self.constants = constants
        self.float_constants = {LANES: LanesConstants(extension, runtime.device), NHWC: NhwcConstants(extension, runtime.device)}
        self._arenas: list[tuple[tuple[str, ...], Arena | LanesArena]] = []  # parts run at the same time: each has its own
        self._layouts = layouts

    def _arena(self, part: Part) -> Arena | LanesArena | None:
        size = part.batch if isinstance(part, Plan) else part.tiles
        return next((a for members, a in self._arenas
                     if members == part.members and a.slots == part.slots and a.capacity >= size), None)

    def needed_bytes(self, plan: EnsemblePlan) -> int:
        """Device memory that :meth:`build` allocates for a plan."""
        image = 1
        for size in plan.image_shape:
            image *= size
        needed = plan.batch * image * (4 if plan.float_images else 1)
        needed += 4 * plan.batch * plan.classes * (len(plan.members) + 1)
        for part in plan.parts:
            new = self._arena(part) is None
            if isinstance(part, LanesPlan):
                needed += self.float_constants[part.layout].missing_bytes(part) + (LanesArena.bytes(part) if new else 0)
            else:
                needed += self.constants.missing_bytes(part) + part.workspace_bytes + (Arena.bytes(part) if new else 0)
        return needed

    def build(self, plan: EnsemblePlan) -> Prepared:
        """Allocates, captures and measures. Memory may be that of programs that still run elsewhere: it waits for them."""
        device = self.runtime.device
        self.runtime.begin()
        c, h, w = plan.image_shape
        images = (torch.zeros((plan.batch, c, h, w), dtype=torch.float32, device=device) if plan.float_images
                  else torch.zeros((plan.batch, h, w, c), dtype=torch.uint8, device=device))
        parts = [self._part(part, images) for part in plan.parts]
        program = EnsembleProgram(plan, parts, images, self.extension, device, self.poison)
        return prepare(program, self.runtime, self.mode, self._layouts)

    def _part(self, plan: Part, images: torch.Tensor) -> Program | LanesProgram:
        arena, device = self._arena(plan), self.runtime.device
        if isinstance(plan, LanesPlan):
            if arena is None:
                arena = LanesArena(plan, device, self.poison)
                self._arenas.append((plan.members, arena))
            assert isinstance(arena, LanesArena)
            program = NhwcProgram if plan.layout == NHWC else LanesProgram
            return program(plan, arena, self.float_constants[plan.layout], images, self.poison)
        if arena is None:
            arena = Arena(plan, device, self.poison)
            self._arenas.append((plan.members, arena))
        assert isinstance(arena, Arena)
        return Program(plan, arena, self.constants, device, self.poison, images=images)
