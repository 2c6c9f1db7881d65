"""precision: compute in bf16 (torch's autocast: weights, losses and sums stay fp32) where this machine is faster so.

Not exact: bf16 keeps 8 bits of the mantissa. Taken where the recipe says `train.precision: bf16`, or where it says `auto` (or
`plan.quality: fast`) and calibration found bf16 at least a quarter faster than fp32.
"""

from __future__ import annotations

from frostline.plan.decision import Decision
from frostline.plan.machine import Machine
from frostline.recipe import Recipe


def propose(recipe: Recipe, machine: Machine) -> Decision:
    """Which floating-point type the network computes in."""
    asked = "auto" if recipe.plan.quality == "fast" and recipe.train.precision == "fp32" else recipe.train.precision
    wanted = machine.fastest_precision if asked == "auto" else asked
    rates = f"measured: fp32 {machine.fp32_gflops:.0f}, bf16 {machine.bf16_gflops:.0f} GFLOP/s"
    reasons = {"fp32": "the recipe's default, exact", "bf16": "the recipe asks for it", "auto": "the faster of the two"}
    return Decision(what="bf16", on=wanted == "bf16", why=f"{reasons[asked]} ({rates})", exact=False)
