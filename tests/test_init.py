"""frostline init: what it finds stands in the recipe, and the recipe can be run as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from frostline.init import commented_recipe
from frostline.recipe import Recipe
from frostline.recipe_reader import all_keys, resolve


def written(text: str, folder: Path) -> tuple[Recipe, dict[str, str]]:
    (folder / "a.yaml").write_text(text, encoding="utf-8")
    return resolve(folder / "a.yaml")


def test_texts(reviews: Path, tmp_path: Path) -> None:
    text = commented_recipe(Recipe().with_values({"data.path": reviews}))
    assert text.startswith("# A Frostline recipe. Run it with: frostline train THIS-FILE\n# Found: text-classification, train 64, ")
    assert "labels: 坏, 好" in text
    assert "# note: text column: '文本' (guessed; set data.input_column)" in text
    recipe, sources = written(text, tmp_path)
    assert recipe == Recipe().with_values({"data.path": reviews, "data.task": "text-classification", "model.name": "gru"})
    assert {"data.path", "data.val", "model.name", "train.epochs", "adapt.method"} <= sources.keys()


def test_images(digit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is one that is installed."""
    for found, name in ((object(), "efficientnet-lite0"), (None, "cnn")):
        monkeypatch.setattr("importlib.util.find_spec", lambda package, found=found: found)
        recipe, _ = written(commented_recipe(Recipe().with_values({"data.path": digit_folder})), tmp_path)
        assert (recipe.data.task, recipe.model.name) == ("image-classification", name)


def test_what_was_given_is_kept(reviews: Path, tmp_path: Path) -> None:
    given = Recipe().with_values(
        {
            "data.path": reviews,
            "data.max_length": 20,
            "model.name": "lstm",
            "model.head": ["dense 8 relu", "dropout 0.5"],
            "train.lr": 3e-4,
            "seed": 5,
        }
    )
    recipe, sources = written(commented_recipe(given), tmp_path)
    assert recipe == given.with_values({"data.task": "text-classification"})
    assert {"data.max_length", "model.head", "train.lr", "seed"} <= sources.keys()


def test_every_key_stands_there_and_can_be_uncommented(reviews: Path, tmp_path: Path) -> None:
    given = Recipe().with_values({"data.path": reviews})
    lines = commented_recipe(given).splitlines()
    keys = [line.replace("# ", "", 1) if line.lstrip().startswith("# ") else line for line in lines[lines.index("") :]]
    recipe, sources = written("\n".join(keys), tmp_path)
    assert set(sources) == set(all_keys())
    assert recipe == given.with_values({"data.task": "text-classification", "model.name": "gru"})
    one = commented_recipe(given).replace("  # cache: auto", "  cache: off").replace("    # zoom: 0.0", "    zoom: 0.5")
    recipe, _ = written(one, tmp_path)
    assert (recipe.plan.cache, recipe.data.augment.zoom) == ("off", 0.5), "a key can be set without its section's line being touched"


def test_hostile_names_stay_comments(tmp_path: Path) -> None:
    path = tmp_path / ("长 名 " * 20 + "a: b # c.csv")
    rows = "".join(f'"row {i}","{label}"\n' for i in range(10) for label in ("猫", "x\nseed: 9\n"))
    path.write_text("text,label\n" + rows, encoding="utf-8")
    text = commented_recipe(Recipe().with_values({"data.path": path}))
    recipe, _ = written(text, tmp_path)
    assert (recipe.seed, recipe.data.path) == (0, str(path))
    assert set(yaml.safe_load(text)) == {"data", "model", "adapt", "plan", "train"}
