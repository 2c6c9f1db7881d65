"""``frostline init``: a commented recipe for data that was looked at.

Every key stands there with its documentation; what was found or given is set, the rest is commented out at its default.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from frostline.data.dataset import Dataset
from frostline.data.prepare import from_recipe
from frostline.data.report import printable
from frostline.models.load import default_name
from frostline.recipe import AdaptRecipe, DataRecipe, ModelRecipe, Recipe, TrainRecipe, describe

_SHOWN: dict[type, tuple[str, ...]] = {
    DataRecipe: ("val", "test_share"),
    ModelRecipe: ("name",),
    AdaptRecipe: ("method",),
    TrainRecipe: ("epochs", "batch", "optimizer"),
}
"""Keys that are set although they have their default, since most people change them."""


def commented_recipe(recipe: Recipe, *, progress: bool = True) -> str:
    """YAML text for ``recipe``, after its data was read; the comments say what was found there."""
    data = from_recipe(recipe, progress=progress)
    found = dataclasses.replace(recipe.data, task=data.schema.task)
    model = dataclasses.replace(recipe.model, name=recipe.model.name or default_name(data.schema))
    return "\n".join([*_found(data), *_section(dataclasses.replace(recipe, data=found, model=model), 0)]) + "\n"


def _found(data: Dataset) -> list[str]:
    """What was seen, as comments; a label or a file's name may hold a line break, which must not end the comment."""
    labels = ", ".join(data.schema.labels[:8]) + (" …" if len(data.schema.labels) > 8 else "")
    rows = ", ".join(f"{split} {table.num_rows}" for split, table in data.splits.items())
    lines = [
        "A Frostline recipe. Run it with: frostline train THIS-FILE",
        f"Found: {data.schema.task}, {rows} rows; labels: {labels or ('numbers' if data.schema.target == 'number' else 'none')}",
        *(f"warning: {text}" for text in data.report.warnings),
        *(f"note: {text}" for text in data.report.notes),
    ]
    return [f"# {printable(' '.join(line.split()))}" for line in lines]


def _section(values: Any, depth: int) -> list[str]:
    lines: list[str] = []
    documentation, default = describe(type(values)), type(values)()  # type: ignore[arg-type]
    for field in dataclasses.fields(values):
        value, indent = getattr(values, field.name), "  " * depth
        if dataclasses.is_dataclass(value):
            lines += [*([""] if depth == 0 else []), f"{indent}{field.name}:", *_section(value, depth + 1)]
            continue
        is_set = value != getattr(default, field.name) or field.name in _SHOWN.get(type(values), ())
        comment = f"  # {documentation[field.name]}" if field.name in documentation else ""
        lines.append(f"{indent}{'' if is_set else '# '}{field.name}: {_yaml(value)}{comment}")
    return lines


def _yaml(value: Any) -> str:
    import yaml

    if value is None:
        return "null"
    return yaml.safe_dump(value, allow_unicode=True, default_flow_style=True, width=float("inf")).strip().removesuffix("...").strip()
