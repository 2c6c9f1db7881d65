"""Whole runs on the stand-in device, each beside the same run on the processor: ``python -m tests.stand_in_runs LIBRARY FOLDER``.

Prints what came of them as JSON. A program of its own, since a device is registered for the whole process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import frostline as fl
import frostline.device
from frostline import api
from frostline.data.dataset import Dataset
from frostline.kernels import hosted_weights, row_scaled_product
from frostline.kernels.large_blocks import bytes_needed
from frostline.models.save import _same_outputs
from frostline.plan import frozen_layers, machine, rates
from frostline.plan.plan import Plan
from frostline.recipe import TrainRecipe
from frostline.train import loop
from frostline.train.interrupt import Interrupted
from frostline.train.optimizers import build_optimizer, state_from_tensors, state_to_tensors
from frostline.train.run import Run
from tests import small, stand_in_device
from tests.conftest import MACHINE
from tests.models.language import folder_of
from tests.train.small import cnn, first_rows, plan, saved, stopping

Make = Callable[..., Plan]
"""``make(folder, **options)``: the same plan again, for another folder."""


def images(place: Path) -> Make:
    """A convolutional network whose first block is frozen and stored, with dropout and a moving average of what learns."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    data = first_rows(fl.prepare(((digits.images[:300] * 15.9).astype(np.uint8), digits.target[:300]), seed=0), 60)
    usual = {"adapt": "last 1", "cache": "on", "ema": 0.9, "class_weights": "balanced"}
    return lambda folder, **options: plan(cnn(data, depth=2), data, folder, **{**usual, **options})


def chat(place: Path) -> Make:
    """A Llama with LoRA and its dropout on conversations of very different lengths."""
    data = fl.prepare(small.talks(12), task="chat", workers=0)
    weights = str(folder_of("llama", place / "llama", max_position_embeddings=200))
    usual = {"adapt": {"method": "lora", "rank": 2, "dropout": 0.2}, "batch": 4, "cache": "off"}
    return lambda folder, **options: plan(fl.load(weights, data=data, max_length=160), data, folder, **{**usual, **options})


def texts(place: Path) -> Make:
    """A Transformer from zero, its batches made by threads."""
    data = fl.prepare(small.review_rows(), task="text-classification", seed=0, workers=2)
    return lambda folder, **options: plan(_transformer(data), data, folder, **{"lr": 1e-3, "pack": "off", **options})


def preferences(place: Path) -> Make:
    """Pairs of answers, compared with what the model says without its adapter."""
    rows = [{"prompt": f"问题 {n}?", "chosen": f"好的 {n}" + " yes" * (n % 3), "rejected": f"no {n}"} for n in range(24)]
    data = fl.prepare(rows, val=0.25, test_share=0, seed=1, workers=0)
    weights = str(folder_of("llama", place / "judge", max_position_embeddings=200))
    usual = {"adapt": "lora", "batch": 6}
    return lambda folder, **options: plan(fl.load(weights, data=data, max_length=120), data, folder, **{**usual, **options})


CASES = {"images": images, "chat": chat, "texts": texts, "preferences": preferences}


def main(library: Path, place: Path) -> dict[str, Any]:
    """All cases, and what the device itself does."""
    device = stand_in_device.register(library)
    frostline.device.accelerator = lambda: device  # which knows CUDA and MPS alone
    machine._measure, machine._GPU_SIDE = lambda: MACHINE, 128  # type: ignore[assignment]
    results: dict[str, Any] = {"device": _of_itself(device)}
    for name, case in CASES.items():
        (place / name).mkdir()
        try:
            results[name] = _compared(case(place / name), place / name, device)
        except Exception:
            results[name] = {"error": traceback.format_exc()}
    results["texts"] |= _in_bf16(place)
    results["short"] = _short_of_memory(place, library, device)
    results["hosted"] = _hosted(place)
    results["eight bits"] = _in_eight_bits(place)
    results["waits"] = stand_in_device.waits(library)
    return results


def _transformer(data: Dataset) -> Any:
    return fl.load("transformer", data=data, width=32, depth=2, dropout=0.1)


def _compared(make: Make, place: Path, device: torch.device) -> dict[str, Any]:
    """The run on the processor, on the device, and on the device stopped after its third step and gone on with."""
    here = fl.train(make(place / "here", device="cpu"), quiet=True)
    planned = make(place / "there")
    there = fl.train(planned, quiet=True)
    resumed = _stopped_and_resumed(make(place / "stopped"), 3)
    module, whole, gone_on = planned.model.module, saved(there), saved(resumed)
    return {
        "losses": {"cpu": _losses(here), "device": _losses(there), "resumed": _losses(resumed)},
        "where": sorted({str(tensor.device) for tensor in module.state_dict().values()}),
        "same_after_resume": list(whole) == list(gone_on) and all(torch.equal(gone_on[name], tensor) for name, tensor in whole.items()),
        "decisions": [decision.what for decision in planned.decisions if decision.on],
        "heading": str(planned).splitlines()[0],
        "peaks": [there.cost[which]["peak_bytes"] for which in ("predicted", "actual")],
        "metrics": [fl.evaluate(there, model=model).metrics for model in (planned.model, None)],
        "predicted": [_predicted(model, there.data) for model in (planned.model, fl.load(there))],
    }


def _stopped_and_resumed(planned: Plan, step: int) -> Run:
    """Trained, stopped during the step of that number, and gone on with."""
    with contextlib.suppress(Interrupted):
        usual, loop.stop_on_interrupt = loop.stop_on_interrupt, stopping(step)
        try:
            fl.train(planned, quiet=True)
        finally:
            loop.stop_on_interrupt = usual
    return api.resume(str(planned.recipe.out), quiet=True)


def _losses(run: Run) -> list[float]:
    """Of every step and, behind them, of every epoch's training and validation."""
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines] + [line["val_loss"] for line in lines if "val_loss" in line]


def _predicted(model: Any, data: Dataset) -> Any:
    if data.schema.task == "image-classification":
        images = (np.arange(4 * 64).reshape(4, 8, 8) % 251).astype(np.uint8)
        return [row["label"] for row in fl.predict(model, list(images), quiet=True)]
    options = {} if data.schema.task == "text-classification" else {"max_new_tokens": 4}
    return [row.get("label", row.get("text")) for row in fl.predict(model, ["味道很好", "the food is bad"], quiet=True, **options)]


def _in_bf16(place: Path) -> dict[str, list[float]]:
    (place / "bf16").mkdir()
    make = texts(place / "bf16")
    runs = {name: fl.train(make(place / "bf16" / name, precision="bf16", epochs=1, device=name), quiet=True) for name in ("cpu", "auto")}
    return {f"bf16_{name}": _losses(run) for name, run in runs.items()}


def _short_of_memory(place: Path, library: Path, device: torch.device) -> dict[str, Any]:
    """Where the device has too little for a batch: known before the run, and found out in it."""
    data = fl.prepare(small.review_rows(), task="text-classification", seed=0, workers=0)

    def make(name: str, **options: Any) -> Plan:
        model = fl.load("transformer", data=data, width=64, depth=2, dropout=0.0)
        return plan(model, data, place / name, **{"lr": 1e-3, "pack": "off", "cache": "off", **options})

    here = fl.train(make("enough", device="cpu"), quiet=True)
    before = machine.resident_bytes(device)
    needed = make("whole").predicted.peak_bytes - before
    room = machine.resident_bytes(device) + int(0.8 * needed)
    stand_in_device.let_it_have(library, room)
    planned = make("pieces")
    in_pieces = fl.train(planned, quiet=True)
    stand_in_device.let_it_have(library, 2**33)
    surprised = make("halves")
    stand_in_device.let_it_have(library, machine.resident_bytes(device) + int(0.6 * needed))
    in_halves = fl.train(surprised, quiet=True)
    stand_in_device.let_it_have(library, 2**33)
    return {
        "losses": [_losses(run) for run in (here, in_pieces, in_halves)],
        "rows": [planned.execution.micro_batch, surprised.execution.micro_batch],
        "peak": in_pieces.cost["actual"]["peak_bytes"] / room,
    }


def _hosted(place: Path) -> dict[str, Any]:
    """Blocks whose frozen weights are brought to the device as they are needed."""
    hosted_weights._LEAST = 1024  # these are small
    (place / "hosted").mkdir()
    make = chat(place / "hosted")
    options = {"adapt": {"method": "lora", "rank": 2}, "pack": "off", "epochs": 1}
    whole = fl.train(make(place / "hosted" / "whole", **options), quiet=True)
    asked = make(place / "hosted" / "asked", offload="on", **options)
    places = {name: str(tensor.device) for name, tensor in asked.model.module.state_dict().items()}
    run = fl.train(asked, quiet=True)
    resumed = _stopped_and_resumed(make(place / "hosted" / "stopped", offload="on", **options), 2)
    return {
        "losses": [_losses(one) for one in (whole, run, resumed)],
        "blocks": [one.settings["blocks"] for one in asked.decisions if one.what == "offload"],
        "places": places,
        "taken": [one.cost["actual"]["peak_bytes"] for one in (whole, run)],
    }


def _in_eight_bits(place: Path) -> dict[str, Any]:
    """Frozen linear layers in 8 bits, as on GPUs of three generations."""
    frozen_layers._SMALLEST = 1  # these are small
    make, adapt = chat(place / "hosted"), {"method": "lora", "rank": 2}
    found: dict[str, Any] = {}
    for name, version in {"none": (7, 0), "int8": (8, 0), "fp8": (9, 0)}.items():
        row_scaled_product.capability = lambda device, version=version: version if device.type == stand_in_device.NAME else (0, 0)
        options = {"adapt": adapt, "epochs": 1, "int8": "on"}
        planned = make(place / name, **options)
        run = fl.train(planned, quiet=True)
        resumed = _stopped_and_resumed(make(place / f"{name} stopped", **options), 2)
        hosted = make(place / f"{name} hosted", offload="on", pack="off", **options)
        found[name] = {
            "losses": [_losses(run), _losses(resumed)],
            "same_after_resume": all(torch.equal(tensor, saved(run)[key]) for key, tensor in saved(resumed).items()),
            "decisions": [(one.what, one.on, one.why, one.costs) for one in planned.decisions],
            "layers": {name: product.lowered_to for name, product in planned.execution.products.items()},
            "tolerance": planned.execution.tolerance,
            "hosted": list(hosted.execution.products),
        }
    return found


def _rates(device: torch.device) -> dict[str, list[str]]:
    rates.GPU_SIDES, rates.CONVOLUTIONS = (64,), ((8, 14),)
    found = rates.product_rates(device, again=True)
    assert found is not None and found == rates.product_rates(device), "kept"
    return {name: sorted(ways) for name, ways in found.items() if all(rate > 0 for rate in ways.values())}


def _of_itself(device: torch.device) -> dict[str, Any]:
    """That it refuses what a GPU refuses, counts memory, and is measured."""
    refused = ""
    try:
        _ = torch.ones(3, device=device) + torch.ones(3)
    except RuntimeError as error:
        refused = str(error)
    measured, states = machine.machine(device), {name: _read_back(name, device) for name in ("adamw", "adafactor")}
    return {
        "refused": refused,
        "states": states,
        "rounded": [_same_outputs(torch.ones(9, device=device), torch.full((9,), value, device=device)) for value in (1, 1.01, 1.1)],
        "bytes": bytes_needed(lambda: torch.ones(1000, device=device) + 1, device),
        "host": dataclasses.asdict(machine.machine()),
        "machine": dataclasses.asdict(measured),
        "rates": _rates(device),
        "again": machine.machine(device) == measured,
        "room": machine.memory_limit(device),
        "taken": machine.resident_bytes(device),
    }


def _read_back(name: Any, device: torch.device) -> list[str]:
    """Where an optimiser's state is that was written to a file and read again."""
    recipe = TrainRecipe(optimizer=name)

    def made() -> Any:
        weight = torch.nn.Parameter(torch.ones(3, 2, device=device))
        weight.grad = torch.ones_like(weight)
        return build_optimizer([{"params": [weight], "names": ["weight"], "lr": 0.1, "weight_decay": 0.0}], recipe)

    first, again = made(), made()
    first.step()
    tensors, numbers = state_to_tensors(first)
    state_from_tensors(again, {key: value.cpu() for key, value in tensors.items()}, numbers)
    again.step()
    return sorted({str(value.device) for state in again.state.values() for value in state.values() if isinstance(value, torch.Tensor)})


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2])), default=float))
