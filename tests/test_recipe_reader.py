"""Reading recipes: what is taken, where it came from, and what is said about what cannot be."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from frostline.errors import RecipeError
from frostline.recipe import Recipe
from frostline.recipe_reader import all_keys, resolve


@pytest.fixture
def yaml_file(tmp_path: Path):  # type: ignore[no-untyped-def]
    def write(text: str | bytes, name: str = "a.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def value_of(recipe: Recipe, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(recipe, section), name) if name else getattr(recipe, section)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("train: {lr: 3e-4}", "train.lr", 3e-4),
        ("train:\n  lr: 1", "train.lr", 1.0),
        ("train: {lr: null}", "train.lr", None),
        ("train: {lr: none}", "train.lr", None),
        ("train: {lr: }", "train.lr", None),
        ("train: {epochs: 1e3}", "train.epochs", 1000),
        ("train: {epochs: 5.0}", "train.epochs", 5),
        ("train: {nesterov: on}", "train.nesterov", True),
        ("train: {nesterov: False}", "train.nesterov", False),
        ("plan: {cache: off}", "plan.cache", "off"),
        ("plan: {cache: on}", "plan.cache", "on"),
        ("model: {head: [flatten, dense 256 relu]}", "model.head", ["flatten", "dense 256 relu"]),
        ("model: {head: flatten}", "model.head", ["flatten"]),
        ("model: {head: }", "model.head", []),
        ("model: {head: null}", "model.head", []),
        ("adapt: last 3", "adapt.last", 3),
        ("adapt: last 3", "adapt.method", "last"),
        ("adapt: lora", "adapt.method", "lora"),
        ("adapt: {method: lora, rank: 2}", "adapt.rank", 2),
        ("train.epochs: 9", "train.epochs", 9),
        ("seed: 12345678901234567890123", "seed", 12345678901234567890123),
        ("data: {path: 数据/猫狗}", "data.path", "数据/猫狗"),
        ("data: {path: 2024}", "data.path", "2024"),
        ('data: {path: "null"}', "data.path", "null"),
        ("data: {path: null}", "data.path", None),
        ("data: {path: yes}", "data.path", "yes"),
        ("train:\nmodel: null\nplan: ~", "train.epochs", 3),
        ("", "train.epochs", 3),
        ("# nothing but a comment", "train.epochs", 3),
        ("\ufeffseed: 4", "seed", 4),
        ("seed: 4\r\n", "seed", 4),
    ],
)
def test_values(yaml_file, text: str, key: str, value: Any) -> None:  # type: ignore[no-untyped-def]
    found = value_of(resolve(yaml_file(text))[0], key)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("trian:\n  lr: 1", ["a.yaml:2", "'trian.lr'", "'train.lr'"]),
        ("\ntrain:\n  epoch: 1", ["a.yaml:3", "'train.epoch'", "'train.epochs'"]),
        ("train: {learning_rate: 1}", ["a.yaml:1", "'train.learning_rate'", "'train.lr'"]),
        ("train: {batch_size: 1}", ["'train.batch'"]),
        ("optimiser: adam", ["'optimiser'", "'train.optimizer'"]),
        ("name: gru", ["'name'", "'model.name'"]),
        ("train: {qqq: 1}", ["'train.qqq'", "the keys below train are: epochs, batch"]),
        ("qqq: 1", ["'qqq'", "the keys there are: data, model, adapt"]),
        ("train:\n  lr:\n    a: 1", ["a.yaml:3", "'train.lr.a'"]),
        ("train:\n  lr: fast", ["a.yaml:2", "train.lr got 'fast'", "expected a number, such as 3e-4"]),
        ("train: {lr: nan}", ["train.lr got 'nan'"]),
        ("train: {lr: .inf}", ["train.lr got '.inf'"]),
        ("train: {lr: 1e999}", ["train.lr got '1e999'"]),
        ("train: {lr: [1, 2]}", ["train.lr got ['1', '2']", "expected a number"]),
        ("train: {epochs: 1.5}", ["train.epochs got '1.5'", "expected a whole number, such as 32"]),
        ("train: {epochs: null}", ["train.epochs got 'null'", "expected a whole number"]),
        ("train: {nesterov: 2}", ["train.nesterov got '2'", "expected on or off"]),
        ("plan:\n  cache: of", ["a.yaml:2", "plan.cache got 'of'", "one of auto, on, off", "did you mean 'off'?"]),
        ("train: fast", ["a.yaml:1", "train got 'fast'", "expected keys below it: epochs"]),
        ("model: {head: {a: b}}", ["unknown key 'model.head.a'"]),
        ("model: {head: [[a, b]]}", ["model.head got", "expected a list"]),
        ("adapt: last 2 3", ["a.yaml:1", "adapt got 'last 2 3'", "expected one method"]),
        ("adapt: last two", ["adapt.last got 'two'", "whole number"]),
        ("train:\n  lr: 1\n  lr: 2", ["a.yaml:3", "the key 'lr'", "keep one of them"]),
        ("- a\n- b", ["a.yaml:1", "'- a\\n- b'", "expected keys", "frostline init"]),
        ("just text", ["a.yaml:1", "'just text'", "expected keys"]),
        ("a: [1\nb: }", ["a.yaml:2", "expected ',' or ']'"]),
        ("a: \x01", ["a.yaml", "special characters are not allowed"]),
        ("? [a]\n: b", ["a.yaml:1", "a list or mapping for a key"]),
        ("data: !!python/object:os.system {}", ["a.yaml:1", "python/object:os.system", "Remove it"]),
        ("!!python/object/apply:os.system [ls]", ["a.yaml:1", "python/object/apply"]),
        ("seed: !!python/name:os.system ''", ["a.yaml:1", "python/name"]),
        ("data: &a {path: x}\nmodel: *a", ["a.yaml:2", "an alias"]),
        ("a: " + "[" * 60 + "]" * 60, ["a.yaml:1", "21 levels of nesting"]),
    ],
)
def test_refused(yaml_file, text: str, parts: list[str]) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(RecipeError) as caught:
        resolve(yaml_file(text))
    message = str(caught.value)
    assert "\n" not in message
    missing = [part for part in parts if part not in message]
    assert not missing, f"{missing} not in: {message}"


def test_file_that_cannot_be_read(yaml_file, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(
        RecipeError, match=r"'.*无\.yaml' cannot be read: No such file or directory\. Write one with: frostline init DATA > "
    ):
        resolve(tmp_path / "无.yaml")
    with pytest.raises(RecipeError, match=r"is not UTF-8.*Save it again"):
        resolve(yaml_file("data: {path: 数据}".encode("gb18030")))
    with pytest.raises(RecipeError, match="Is a directory"):
        resolve(tmp_path)


def test_every_source_is_told(yaml_file) -> None:  # type: ignore[no-untyped-def]
    path = yaml_file("# a comment\ndata:\n  path: 数据\nadapt: last 3\ntrain:\n  lr: 1\n  epochs: 4\n", "配方.yaml")
    recipe, sources = resolve(path, ["train.epochs=5", "plan.cache=off"], {"model.name": "gru"})
    assert sources == {
        "data.path": "配方.yaml:3",
        "adapt.method": "配方.yaml:4",
        "adapt.last": "配方.yaml:4",
        "train.lr": "配方.yaml:6",
        "train.epochs": "command line",
        "model.name": "command line",
        "plan.cache": "command line",
    }
    assert (recipe.train.epochs, recipe.adapt.last, recipe.model.name) == (5, 3, "gru")


@pytest.mark.parametrize(
    ("first", "overrides", "method", "last"),
    [
        ("adapt: last 3", ["adapt.last=5"], "last", 5),
        ("adapt: {method: last, last: 3}", ["adapt=last 5"], "last", 5),
        ("adapt: last 3", ["adapt=head"], "head", 2),
        ("adapt: last 3", ["adapt.last=4", "adapt=head"], "head", 4),
        ("adapt: head", ["adapt.method=last", "adapt.last=4"], "last", 4),
        ("adapt: head", ["adapt.last=4", "adapt=last 6"], "last", 6),
    ],
)
def test_the_later_one_counts(yaml_file, first: str, overrides: list[str], method: str, last: int) -> None:  # type: ignore[no-untyped-def]
    recipe = resolve(yaml_file(first), overrides)[0]
    assert (recipe.adapt.method, recipe.adapt.last) == (method, last)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.lr=3e-4", "train.lr", 3e-4),
        ("train.lr=", "train.lr", None),
        ("train.lr=null", "train.lr", None),
        ("model.head=[flatten, dense 256 relu]", "model.head", ["flatten", "dense 256 relu"]),
        ("model.head=flatten, dense 256 relu", "model.head", ["flatten", "dense 256 relu"]),
        ("model.head=", "model.head", []),
        ("train={lr: 1e-3, epochs: 7}", "train.epochs", 7),
        ("adapt={method: lora, rank: 2}", "adapt.rank", 2),
        ("adapt=last 4", "adapt.last", 4),
        ("data.path=a=b", "data.path", "a=b"),
        ("data.path=[a]", "data.path", "[a]"),
        ("data.path={a: b}", "data.path", "{a: b}"),
        ("data.path=a: b # c", "data.path", "a: b # c"),
        ("data.path=*猫", "data.path", "*猫"),
        ("data.label_separator=;", "data.label_separator", ";"),
    ],
)
def test_overrides(override: str, key: str, value: Any) -> None:
    assert value_of(resolve(None, [override])[0], key) == value


def test_flags_are_text_as_it_stands() -> None:
    recipe = resolve(None, [], {"data.path": "{a: [b]}", "model.name": "!x"})[0]
    assert (recipe.data.path, recipe.model.name) == ("{a: [b]}", "!x")


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.lr", ["command line", "'train.lr'", "expected key=value"]),
        ("=3", ["'=3'", "expected key=value"]),
        ("train.lr=fast", ["command line: train.lr got 'fast'"]),
        ("trian.lr=1", ["command line: unknown key 'trian.lr'", "'train.lr'"]),
        ("train={lr: !!python/object:os.system {}}", ["the tag"]),
        ("train={lr: 1, lr: 2}", ["second time"]),
        ("train=[1]", ["train got ['1']", "expected keys below it"]),
    ],
)
def test_overrides_refused(override: str, parts: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        resolve(None, [override])
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"train.lr": "fast"}, "argument train.lr: train.lr got 'fast'"),
        ({"train.lr": True}, "train.lr got True"),
        ({"train.epochs": 10**400, "train.lr": 10**400}, "train.lr got 1000"),
        ({"train.epochs": float("nan")}, "train.epochs got nan"),
        ({"data.path": 3}, "data.path got 3, expected text"),
        ({"model.head": [None]}, "model.head got [None]"),
        ({"nonsense": 1}, "argument nonsense: unknown key 'nonsense'"),
    ],
)
def test_python_values_refused(values: dict[str, Any], part: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe().with_values(values)
    assert part in str(caught.value)


def test_python_values() -> None:
    recipe = Recipe().with_values({"data": {"path": Path("a/b"), "augment": {"zoom": 1}}, "plan.cache": True, "model.head": ("a",)})
    assert (recipe.data.path, recipe.data.augment.zoom, recipe.plan.cache, recipe.model.head) == ("a/b", 1.0, "on", ["a"])


def test_all_keys_are_leaves() -> None:
    assert {"seed", "data.augment.zoom", "train.lr"} <= set(all_keys())
    assert "data.augment" not in all_keys()


def test_numbers_by_name(yaml_file) -> None:  # type: ignore[no-untyped-def]
    path = yaml_file("adapt:\n  method: lora\n  rank_pattern: {q_proj: 4, 'layers\\.[01]\\.v': 1e1}\n")
    recipe, sources = resolve(path, ["adapt.rank_pattern.k=2", "adapt.alpha_pattern={层.q: 1.5}"])
    assert recipe.adapt.rank_pattern == {"q_proj": 4, r"layers\.[01]\.v": 10, "k": 2}
    assert recipe.adapt.alpha_pattern == {"层.q": 1.5} and sources["adapt.rank_pattern"] == "command line"
    assert recipe.with_values({"adapt.rank_pattern": {}}).adapt.rank_pattern == {}
    assert recipe.with_values({"adapt.rank_pattern": {"a.b": "8"}}).adapt.rank_pattern["a.b"] == 8
    assert Recipe.from_yaml(yaml_file(recipe.to_yaml(), "b.yaml")) == recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("adapt.rank_pattern=8", "command line: adapt.rank_pattern got '8', expected numbers by name, as in {q_proj: 16}"),
        ("adapt.rank_pattern={q: much}", "adapt.rank_pattern.q got 'much', expected a whole number"),
        ("adapt.rank_patern.q=8", "unknown key 'adapt.rank_patern.q'"),
    ],
)
def test_numbers_by_name_refused(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        resolve(None, [override])
