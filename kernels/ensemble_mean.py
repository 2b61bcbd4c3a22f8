"""The average of the members' logits.

    out[n,k] = ((z_0[n,k] + z_1[n,k]) + ... + z_{M-1}[n,k]) * f32(1 / M)         M > 1
    out[n,k] = z_0[n,k]                                                          M = 1, bit for bit

z_m, out: float32 [N, K], contiguous; any values, NaN and Inf included: a NaN row of one member is a NaN row of the
result.  Sums run in member order, each addition and the product rounded to binary32 on their own, so the result equals
backends.reference.mean_logits to the bit.  out may be one of the z_m.  4 * (M + 1) bytes per logit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl

from .launch import INT32_LIMIT, Cost, Launch, require

MEMBERS = 16
BLOCK = 512


@triton.jit(do_not_specialize=["values", "share"])
def ensemble_mean_kernel(
    z0, z1, z2, z3, z4, z5, z6, z7, z8, z9, z10, z11, z12, z13, z14, z15, out, values, share,
    COUNT: tl.constexpr, BLOCK: tl.constexpr,
):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ok = i < values
    members = (z0, z1, z2, z3, z4, z5, z6, z7, z8, z9, z10, z11, z12, z13, z14, z15)
    total = tl.load(z0 + i, mask=ok, other=0.0)
    if COUNT > 1:
        for k in tl.static_range(1, COUNT):
            total = total + tl.load(members[k] + i, mask=ok, other=0.0)
        total = total * share
    tl.store(out + i, total, mask=ok)


def launch(name: str, logits: Sequence[torch.Tensor], out: torch.Tensor) -> Launch:
    """The mean of 1 to 16 members' ``logits``.  Raises ValueError for operands that do not fit each other."""
    who = f"ensemble_mean {name}"
    require(who, 1 <= len(logits) <= MEMBERS, f"1 to {MEMBERS} members", len(logits))
    for z in (*logits, out):
        require(who, z.dtype == torch.float32 and z.is_contiguous(), "contiguous float32 logits", z.dtype)
        require(who, z.dim() == 2 and z.shape == out.shape, f"logits {tuple(out.shape)}", tuple(z.shape))
    values = out.numel()
    require(who, values <= INT32_LIMIT, f"at most {INT32_LIMIT} logits", values)
    arguments: dict[str, torch.Tensor | int | float] = {
        f"z{k}": logits[min(k, len(logits) - 1)] for k in range(MEMBERS)
    }
    arguments |= {"out": out, "values": values, "share": float(np.float32(1.0 / len(logits)))}
    cost = Cost(4 * values * len(logits), 4 * values)
    grid, constants = (-(-values // BLOCK),), {"COUNT": len(logits), "BLOCK": BLOCK}
    return Launch(name, ensemble_mean_kernel, grid, arguments, constants, 4, 1, cost)
