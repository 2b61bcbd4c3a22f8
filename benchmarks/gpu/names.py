"""How results of float members and ensembles are named. Plain data, no torch: whoever reads results needs no GPU's packages."""

from __future__ import annotations

from dataclasses import dataclass

from hce_engine.arithmetic import SPLIT_ARITHMETICS

from .float_shapes import RATIO

DIRECT, PLAIN, NHWC = "direct", "plain", "nhwc"  # float32; variants.py says what they are
COMPENSATED = SPLIT_ARITHMETICS
ENSEMBLE_BATCHES = (4096, 1024, 8192, 256)


@dataclass(frozen=True)
class Case:
    """An ensemble. arch: of the unpruned network.  bits: of q; 0 for the shipped artifact.  ratio: of the FLOPs, of s."""

    name: str
    arch: str
    bits: int = 3
    ratio: float = RATIO


CASES = {case.name: case for case in (
    Case("resnet20 w3a3+s43.5", "resnet20"), Case("resnet20 shipped", "resnet20", 0), Case("resnet56 w3a3+s43.5", "resnet56"),
)}


def plain_key(case: str, batch: int) -> str:
    """The item with every way in which an ensemble runs."""
    return f"{case}, batch {batch}"


def compiled_key(case: str, batch: int, variant: str, kinds: str) -> str:
    """An item with a variant of torch.compile beside ensembles."""
    return f"{case}, batch {batch}, {variant} {kinds}"
