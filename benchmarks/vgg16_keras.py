"""The headline job against Keras 3 on TensorFlow: VGG16 frozen, a new head, 224 × 224, 10 epochs, no augmentation.

    python benchmarks/vgg16_keras.py [--keras PYTHON] [--peer ../shared/peers/keras_vgg16.py] [--images 240] [--repeat 3]

``--keras`` is the Python of an environment with ``keras tensorflow-cpu pillow scipy h5py`` (`make .venv-keras/.stamp`).
The peer runs unchanged. Each
side is a process of its own, one after the other, on the same images, the same weights, the same optimiser; seconds are
those of the training alone on both sides (the peer's own clock; ours from before the plan's probe to the saved model).
A second comparison feeds both sides the same batches from the same initial head, without dropout, and compares the losses.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import harness
import inputs

HEAD = ["flatten", "dense 256 relu", "dropout 0.5"]


WAYS = {"fp32": {}, "bf16": {"precision": "bf16"}, "fast": {"quality": "fast"}}
RANDOM = {"shear": 0.2, "zoom": 0.2, "horizontal_flip": True}


def ours(images: str, weights: str, epochs: int, out: str, way: str, augmented: int) -> None:
    """One run; prints one JSON line."""
    import frostline as fl

    augment = {"rescale": 1 / 255, **(RANDOM if augmented else {})}
    data = fl.prepare(images, task="image-classification", size=224, val=0.2, test_share=0, augment=augment)
    model = fl.load("vgg16", data=data, weights=weights, head=HEAD)
    start = time.perf_counter()
    plan = fl.plan(model, data, epochs=epochs, batch=32, optimizer="adam", lr=1e-4, out=out, **WAYS[way])
    planned = time.perf_counter() - start
    run = fl.train(plan, quiet=True)
    seconds = time.perf_counter() - start
    last = run.history[-1]
    print(json.dumps({"seconds": seconds, "planned": planned, "on": [d.what for d in plan.decisions if d.on],
                      "lowered": next((d.why for d in plan.decisions if d.what == "lower_frozen"), ""), "losses": [e["loss"] for e in run.history], "accuracy": last["accuracy"],
                      "val_accuracy": last["val_accuracy"], "peak_rss_gb": run.cost["actual"]["peak_bytes"] / 2**30,
                      "predicted_seconds": run.cost["predicted"]["seconds"]}))  # fmt: skip


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
    sides: dict[str, list[dict]] = {"Keras 3 (TensorFlow)": [], "Frostline": []}
    for index in range(options.repeat):
        sides["Keras 3 (TensorFlow)"].append(
            harness.last_json_line([*peer, str(options.epochs), "--weights", str(weights)], cwd=options.peer.parent)
        )
        out = str(folder / f"run{index}")
        sides["Frostline"].append(harness.last_json_line([*me, "ours", str(images), str(weights), str(options.epochs), out]))
    seconds = {name: harness.median([run["seconds"] for run in runs]) for name, runs in sides.items()}
    rows = [
        [
            name,
            f"{seconds[name]:.1f}",
            f"{runs[0]['losses'][-1]:.4f}",
            f"{runs[0]['val_accuracy']:.3f}",
            f"{max(r['peak_rss_gb'] for r in runs):.2f}",
        ]
        for name, runs in sides.items()
    ]
    (folder / "same").mkdir()
    harness.last_json_line([*me, "same", str(images), str(weights), str(folder / "same")])
    keras = harness.last_json_line(
        [options.keras, str(Path(__file__).with_name("keras_same_batches.py")), str(weights), str(folder / "same")]
    )
    frostline = harness.last_json_line([*me, "same", str(images), str(weights), str(folder / "same")])
    difference = max(abs(a - b) / a for a, b in zip(keras["losses"], frostline["losses"], strict=True))
    harness.publish(
        "vgg16_keras", ["", "seconds, median", "last training loss", "validation accuracy", "peak GB"], rows,
        times_faster=round(seconds["Keras 3 (TensorFlow)"] / seconds["Frostline"], 2),
        predicted_seconds=round(sides["Frostline"][0]["predicted_seconds"], 1),
        images=options.images, epochs=options.epochs, repeats=options.repeat,
        losses_on_same_batches=f"Keras {[round(x, 5) for x in keras['losses']]}, Frostline {[round(x, 5) for x in frostline['losses']]}",
        largest_relative_difference=f"{difference:.2e}",
    )  # fmt: skip


if __name__ == "__main__":
    main()
