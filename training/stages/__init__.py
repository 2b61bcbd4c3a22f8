"""The members of a run: O trained or loaded, Q quantized from O, S pruned from O beside Q.

Each function makes one member and leaves it in the run's folder; a file that is there already is the result of that
phase and is read instead. Graphs keep their batch norms here (training needs them) and are lowered on export.
"""

from .context import Run, flops, phase_seed
from .original import original
from .pruned import pruned
from .quantized import quantized, require_budget, widths

__all__ = ["Run", "flops", "original", "phase_seed", "pruned", "quantized", "require_budget", "widths"]
