"""The run doctor during training (law 10): what would be useless to go on with is named and stops the run."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from frostline.data.loader import Batch
from frostline.errors import TrainingStopped
from frostline.plan.execution import Execution
from frostline.plan.plan import Plan

WATCHED_STEPS = 3
"""A parameter that got no gradient in so many first steps is named. Three: LoRA's A has none in the first, while B is zero."""


def stop_without_labels(step: int) -> TrainingStopped:
    """The error for an optimiser step in whose rows nothing is labelled."""
    return TrainingStopped(
        f"step {step}: got 0 labels in the rows of one optimiser step, expected at least one. Look at the rows with: frostline check"
    )


def diagnose(plan: Plan, batch: Batch, value: float, step: int, kept: str, what: str = "loss") -> TrainingStopped:
    """The error for a loss or gradient that is not finite: the first module that goes wrong and the likely cause."""
    execution, module, lr = plan.execution, plan.model.module, plan.recipe.train.lr
    assert lr is not None, "the plan settles the learning rate"
    if batch.border is not None:  # what was stored tells nothing of where it went wrong: look at the whole network
        batch = execution.sources["train"].encode(batch.rows.numpy(), None)
    bad_inputs = [name for name, value in batch.inputs.items() if value.is_floating_point() and not value.isfinite().all()]
    bad_weights = [name for name, tensor in module.state_dict().items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    first = _first_not_finite(execution, batch)
    if bad_inputs:
        cause = f"the input {bad_inputs[0]!r} holds values that are not finite (rows {batch.rows[:5].tolist()} …)"
    elif bad_weights and step <= 1:
        cause = f"the weight {bad_weights[0]!r} was not finite before training: the weight file is damaged"
    elif bad_weights:
        cause = f"the weight {bad_weights[0]!r} is not finite any more: the learning rate {lr:g} is likely too high. "
        cause += f"Try train.lr={lr / 10:g} or train.clip=1"
    elif first is not None:
        cause = f"{first!r} is the first module whose output is not finite. Try train.lr={lr / 10:g}, train.clip=1 or train.precision=fp32"
    else:
        cause = f"every module's output is finite, so the {what} itself overflows. "
        cause += f"Try train.lr={lr / 10:g} and check the labels: frostline check"
    return TrainingStopped(f"step {step}: the {what} is {value!r}, expected a finite number; {cause}. {kept}")


def _first_not_finite(execution: Execution, batch: Batch) -> str | None:
    found: list[str] = []
    handles = []
    for name, child in execution.model.module.named_modules():

        def leave(module: nn.Module, args: object, output: object, name: str = name) -> None:
            if isinstance(output, Tensor) and output.is_floating_point() and not output.isfinite().all():
                found.append(name)

        handles.append(child.register_forward_hook(leave))
    try:
        with torch.no_grad():
            execution.forward(batch)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


class GradientWatch:
    """Names the learning parameters that got no gradient in any of the first steps."""

    def __init__(self, module: nn.Module):
        self.silent = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        self.steps = 0

    def look(self) -> None:
        """Call between the backward pass and the update."""
        if self.steps < WATCHED_STEPS:
            self.steps += 1
            self.silent = {name: p for name, p in self.silent.items() if p.grad is None or not p.grad.any()}

    def verdict(self) -> str | None:
        """A message, once, after the last watched step, where there is something to say."""
        if self.steps < WATCHED_STEPS or not self.silent:
            return None
        names, self.silent = list(self.silent), {}
        return (
            f"Warning: {len(names)} learning parameters got no gradient in the first {WATCHED_STEPS} steps, "
            f"the first is {names[0]!r}. They do not learn."
        )
