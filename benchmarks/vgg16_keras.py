"""The headline job against Keras 3 on TensorFlow: VGG16 frozen, a new head, 224 × 224, 10 epochs, no augmentation.

    python benchmarks/vgg16_keras.py [--augment] [--keras PYTHON] [--peer ../shared/peers/keras_vgg16.py] [--images 240] [--repeat 3]

``--keras`` is the Python of an environment with ``keras tensorflow-cpu pillow scipy h5py`` (`make .venv-keras/.stamp`).
The peer runs unchanged, as documented and with its own --bf16; ours exact in fp32, in bf16 (both sides' only where the machine is
faster so), and with plan.quality=fast, which may take bf16 and int8. Each side is a process of its own, one after the other, on the
same images, the same weights, the same optimiser; seconds are those of the training alone on both sides (the peer's own clock; ours
from before the plan's probe to the saved model, with an empty cache, so that the machine is measured and C++ built in that time, as far as
it was not built while the model was loaded). ``--augment``: sheared, zoomed and flipped anew in each epoch, so nothing is cached;
once more in three views of each image in turn, which are (the peer has nothing of the kind).
A second comparison feeds both sides the same batches from the same initial head, without dropout, and compares the losses.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import inputs

HEAD = ["flatten", "dense 256 relu", "dropout 0.5"]


KERAS = "Keras 3 (TensorFlow)"
WAYS: dict[str, dict[str, Any]] = {"fp32": {}, "bf16": {"precision": "bf16"}, "fast": {"quality": "fast"}}
IN_VIEWS = "fast, 3 views"
RANDOM = {"shear": 0.2, "zoom": 0.2, "horizontal_flip": True}


def ours(images: str, weights: str, epochs: int, out: str, way: str, augmented: int) -> None:
    """One run; prints one JSON line."""
    import frostline as fl

    augment = {"rescale": 1 / 255, **(RANDOM if augmented else {}), "views": 3 if way == IN_VIEWS else None}
    data = fl.prepare(images, task="image-classification", size=224, val=0.2, test_share=0, augment=augment)
    model = fl.load("vgg16", data=data, weights=weights, head=HEAD)
    start = time.perf_counter()
    plan = fl.plan(model, data, epochs=epochs, batch=32, optimizer="adam", lr=1e-4, out=out, **WAYS[way.partition(",")[0]])
    planned = time.perf_counter() - start
    run = fl.train(plan, quiet=True)
    seconds = time.perf_counter() - start
    print(json.dumps({
        "seconds": seconds, "planned": planned, "losses": [epoch["loss"] for epoch in run.history],
        "val_accuracy": run.history[-1]["val_accuracy"],
        "lowered": next((made.why for made in plan.decisions if made.what == "lower_frozen"), ""),
        "peak_rss_gb": run.cost["actual"]["peak_bytes"] / 2**30, "predicted_seconds": run.cost["predicted"]["seconds"],
    }))  # fmt: skip


def same_batches(images: str, weights: str, folder: str, epochs: int = 3) -> None:
    """Write the batch order for Keras, then train on it with Keras's initial head; prints one JSON line.

    Called twice: without the head's file it writes the order, with it it trains.
    """
    import numpy as np
    import torch

    import frostline as fl
    from frostline.data.loader import epoch_batches

    data = fl.prepare(images, task="image-classification", size=224, val=0, test_share=0, augment={"rescale": 1 / 255})
    table, head_file = data.splits["train"], Path(folder) / "head.npz"
    if not head_file.exists():
        batches = [[table["path"][int(i)].as_py() for i in rows] for e in range(epochs) for rows in epoch_batches(table.num_rows, 32, 0, e)]
        (Path(folder) / "batches.json").write_text(json.dumps({"batches": batches, "classes": list(data.task.labels), "epochs": epochs}))
        print("{}")
        return
    model = fl.load("vgg16", data=data, weights=weights, head=["flatten", "dense 256 relu"])
    first, last = [m for m in model.module.head.modules() if isinstance(m, torch.nn.Linear)]
    keras = np.load(head_file)
    kernel = keras["kernel1"].reshape(7, 7, 512, 256).transpose(3, 2, 0, 1).reshape(256, -1)  # Keras flattens (H, W, C)
    with torch.no_grad():
        for layer, weight, bias in [(first, kernel, keras["bias1"]), (last, keras["kernel2"].T, keras["bias2"])]:
            layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(weight)))
            layer.bias.copy_(torch.from_numpy(bias))
    run = fl.train(fl.plan(model, data, epochs=epochs, batch=32, optimizer="adam", lr=1e-4, out=f"{folder}/run"), quiet=True)
    print(json.dumps({"losses": [e["loss"] for e in run.history]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = str(harness.ROOT / ".venv-keras" / "bin" / "python")
    parser.add_argument("--keras", default=default, help="the Python of the peer's environment; `make bench` makes one")
    parser.add_argument("--peer", type=Path, default=harness.ROOT.parent / "shared" / "peers" / "keras_vgg16.py")
    parser.add_argument("--augment", action="store_true", help="shear, zoom and flip, anew in each epoch")
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--side", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        {"ours": ours, "same": same_batches}[options.side[0]](*(int(word) if word.isdigit() else word for word in options.side[1:]))
        return
    for needed in (options.peer, Path(options.keras)):
        if not needed.exists():
            sys.exit(f"{needed} is missing: the peer's script is given with --peer, its environment with --keras (make .venv-keras/.stamp)")
    with tempfile.TemporaryDirectory() as folder:
        compare(options, Path(folder))


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Run both sides and print the table."""
    images, weights = inputs.digits_folder(folder / "images", options.images, 224), folder / "vgg16.h5"
    peer = [options.keras, str(options.peer), str(images), "--epochs"]
    me = [sys.executable, __file__, "--side"]
    harness.last_json_line([*peer, "1", "--save-weights", str(weights)], cwd=options.peer.parent)
    keras_run = [*peer, str(options.epochs), "--weights", str(weights), *(["--augment"] if options.augment else [])]

    def keras(*words: str) -> Callable[[], dict[str, Any]]:
        return lambda: harness.last_json_line([*keras_run, *words], cwd=options.peer.parent)

    def frostline(way: str) -> Callable[[], dict[str, Any]]:
        def run() -> dict[str, Any]:
            with tempfile.TemporaryDirectory() as out:
                augmented = str(int(options.augment))
                return harness.last_json_line([*me, "ours", str(images), str(weights), str(options.epochs), f"{out}/run", way, augmented])

        return run

    ways = [*WAYS, IN_VIEWS] if options.augment else [*WAYS]
    sides, left_out = harness.without_slow_bf16(
        {KERAS: keras(), f"{KERAS} --bf16": keras("--bf16"), **{f"Frostline {way}": frostline(way) for way in ways}}
    )
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for _ in range(options.repeat):
        for name, run in sides.items():
            runs[name].append(run())
    seconds = {name: harness.median([run["seconds"] for run in found]) for name, found in runs.items()}
    rows = [
        [
            name,
            f"{seconds[name]:.1f}",
            f"{seconds[KERAS] / seconds[name]:.1f} ×",
            f"{found[0]['planned']:.1f}" if "planned" in found[0] else "",
            f"{found[0]['losses'][-1]:.4f}",
            f"{found[0]['val_accuracy']:.3f}",
            f"{max(r['peak_rss_gb'] for r in found):.2f}",
        ]
        for name, found in runs.items()
    ]
    headers = ["", "seconds, median", "against the first", "of these planning", "last training loss", "validation accuracy", "peak GB"]
    facts = {"images": options.images, "epochs": options.epochs, "repeats": options.repeat, **left_out}
    facts |= {"predicted_seconds": {name: round(found[0]["predicted_seconds"], 1) for name, found in runs.items() if "planned" in found[0]}}
    facts |= {"int8": runs["Frostline fast"][0]["lowered"]}
    if not options.augment:
        facts |= same_losses(options, folder, images, weights)
    harness.publish("vgg16_keras_augment" if options.augment else "vgg16_keras", headers, rows, **facts)


def same_losses(options: argparse.Namespace, folder: Path, images: Path, weights: Path) -> dict[str, str]:
    """Losses of both sides on the same batches."""
    me = [sys.executable, __file__, "--side", "same", str(images), str(weights), str(folder / "same")]
    (folder / "same").mkdir()
    harness.last_json_line(me)
    keras = harness.last_json_line(
        [options.keras, str(Path(__file__).with_name("keras_same_batches.py")), str(weights), str(folder / "same")]
    )
    frostline = harness.last_json_line(me)
    difference = max(abs(a - b) / a for a, b in zip(keras["losses"], frostline["losses"], strict=True))
    return {
        "losses_on_same_batches": f"Keras {[round(x, 5) for x in keras['losses']]}, Frostline {[round(x, 5) for x in frostline['losses']]}",
        "largest_relative_difference": f"{difference:.2e}",
    }


if __name__ == "__main__":
    main()
