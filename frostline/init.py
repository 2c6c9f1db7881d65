"""``frostline init``: a commented recipe for data that was looked at.

Every key stands there with its documentation; what was found or given is set, the rest is commented out at its default.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from frostline.data.prepare import from_recipe
from frostline.recipe import AdaptRecipe, DataRecipe, ModelRecipe, Recipe, TrainRecipe, describe

_SHOWN: dict[type, tuple[str, ...]] = {
    DataRecipe: ("val", "test_share"),
    ModelRecipe: ("name",),
    AdaptRecipe: ("method",),
    TrainRecipe: ("epochs", "batch", "optimizer"),
}
"""Keys that are set although they have their default, since most people change them."""


def commented_recipe(recipe: Recipe) -> str:
    """YAML text for ``recipe``, after its data was read; the comments say what was found there."""
    data = from_recipe(recipe)
    found = dataclasses.replace(recipe.data, task=data.schema.task)
    name = recipe.model.name or ("gru" if data.schema.task == "text-classification" else "efficientnet-lite0")
    recipe = dataclasses.replace(recipe, data=found, model=dataclasses.replace(recipe.model, name=name))
    labels = ", ".join(data.schema.labels[:8]) + (" …" if len(data.schema.labels) > 8 else "")
    rows = ", ".join(f"{split} {table.num_rows}" for split, table in data.splits.items())
    head = [
        "# A Frostline recipe. Run it with: frostline train THIS-FILE",
        f"# Found: {data.schema.task}, {rows} rows; labels: {labels or 'numbers'}",
        "",
    ]
    return "\n".join(head + _section(recipe, 0)) + "\n"


def _section(values: Any, depth: int) -> list[str]:
    lines: list[str] = []
    documentation, default = describe(type(values)), type(values)()  # type: ignore[arg-type]
    for field in dataclasses.fields(values):
        value, indent = getattr(values, field.name), "  " * depth
        if dataclasses.is_dataclass(value):
            below = _section(value, depth + 1)
            empty = all(line.lstrip().startswith("#") for line in below)
            heading = f"{indent}{'# ' if empty and depth else ''}{field.name}:{' {}' if empty and not depth else ''}"
            lines += [*([""] if depth == 0 else []), heading, *below]
            continue
        is_set = value != getattr(default, field.name) or field.name in _SHOWN.get(type(values), ())
        comment = f"  # {documentation[field.name]}" if field.name in documentation else ""
        lines.append(f"{indent}{'' if is_set else '# '}{field.name}: {_yaml(value)}{comment}")
    return lines


def _yaml(value: Any) -> str:
    import yaml

    if value is None:
        return "null"
    return yaml.safe_dump(value, allow_unicode=True, default_flow_style=True).strip().removesuffix("...").strip()
