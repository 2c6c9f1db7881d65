"""``prepare``: from raw data to a Dataset: read, clean, set leaking rows aside, divide, report.

Each stage is a file of its own (sources, clean, split, report); here is their order and what must hold in the end: every
class can be learned, nothing that is tested on stands in training, and no row has vanished without being counted.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from frostline.data.clean import CLASSIFICATION, WARNING, clean
from frostline.data.dataset import COLUMNS, SPLITS, Dataset, Schema, load_dataset
from frostline.data.raw import Raw
from frostline.data.report import DataReport, group_set_aside, histogram
from frostline.data.sources import read_object, read_recipe
from frostline.data.split import leaking_rows, limit_rows, refuse_lost, split_rows
from frostline.errors import DataError
from frostline.recipe import DataRecipe, Recipe

_EXAMPLES = 5
_FREE_WHEN_PREPARED = ("path", "size", "max_length", "workers", "augment", "train_on", "too_long", "prompt")  # these change no row


def prepare(
    data: Any = None,
    *,
    task: str | None = None,
    recipe: DataRecipe | None = None,
    class_names: Sequence[str] | None = None,
    progress: bool = True,
    **options: Any,
) -> Dataset:
    """Read, clean and divide data.

    ``data`` is a file or folder, a folder that :meth:`Dataset.save` wrote, ``(images, labels)`` or ``(texts, labels)``,
    ``[(text, label), …]``, ``{column: values}`` or a torch Dataset. ``options`` are the fields of :class:`DataRecipe`;
    ``class_names`` names the numbers among the labels of arrays; ``progress`` shows a bar on a terminal.

    >>> data = prepare([("good", "pos"), ("bad", "neg"), ("fine", "pos"), ("poor", "neg")], val=0.5, test_share=0)
    >>> data.task.labels, {name: table.num_rows for name, table in data.splits.items()}
    (('neg', 'pos'), {'train': 2, 'validation': 2})
    """
    values = {f"data.{name}": value for name, value in options.items()}
    if task is not None:
        values["data.task"] = task
    named = isinstance(data, str | os.PathLike)
    if named:
        values["data.path"] = os.fspath(data)
    full = replace(Recipe(), data=recipe or DataRecipe()).with_values(values)
    if data is None or named:
        return from_recipe(full, progress=progress)
    return _divide(read_object(data, full.data, class_names), full, "")


def from_recipe(recipe: Recipe, *, progress: bool = True) -> Dataset:
    """The Dataset that a recipe's ``data`` and ``seed`` describe."""
    data = recipe.data
    if data.path is not None and Path(data.path, "dataset.json").is_file():
        return _prepared(Path(data.path), data)
    source = data.path or ", ".join(value for value in (data.train, data.validation, data.test) if value)
    return _divide(read_recipe(data, progress=progress), recipe, source)


def _prepared(folder: Path, recipe: DataRecipe) -> Dataset:
    """A saved Dataset as it is. What the recipe asks for beyond its defaults must be what it was made with."""
    dataset = load_dataset(folder)
    given, usual = asdict(recipe), asdict(DataRecipe())
    asked = {key: value for key, value in given.items() if value != usual[key] and key != "path"}
    for key, value in asked.items():
        if key not in _FREE_WHEN_PREPARED and value != dataset.recipe.get(key) and not (key == "task" and value == dataset.schema.task):
            raise DataError(
                f"{str(folder)!r} was prepared with data.{key}={dataset.recipe.get(key)!r}, but the recipe asks for {value!r}. "
                f"Leave data.{key} out, or prepare the raw data again with: frostline prepare DATA --out FOLDER"
            )
    dataset.recipe = {**dataset.recipe, **{key: value for key, value in asked.items() if key in _FREE_WHEN_PREPARED}}
    return dataset


def _divide(raw: Raw, recipe: Recipe, source: str) -> Dataset:
    # The seed that decides is kept with the rows: where they are taken up under another seed, the division stays this one.
    seed = recipe.seed if recipe.data.seed is None else recipe.data.seed
    data = replace(recipe.data, seed=seed)
    if data.task is not None and raw.task != data.task:
        raise DataError(
            f"{source or 'the data'} is for {raw.task}, but data.task got {data.task!r}. Leave data.task out, or give other data"
        )
    origins, before = raw.table["origin"].to_pylist(), _column(raw.table, "split")
    raw, classes = clean(raw, data)
    if before is not None:
        refuse_lost(origins, before, _column(raw.table, "split") or (), raw.set_aside)
    schema = Schema(task=raw.task, target=_target(raw.task, data), labels=classes)  # type: ignore[arg-type]
    raw, leakage = _without_leaks(raw)
    raw = _limited(raw, data, seed)
    _check_enough(raw, data)
    table = raw.table
    strata = _strata(table, schema)
    ids, given = table["id"].to_pylist(), _column(table, "split")
    names = split_rows(ids, strata, _column(table, "group"), given, data.val, data.test_share, seed)
    notes = [*raw.notes, *_conflicts(table), *_check_classes(table, names, given, schema), *_about_splits(names, given, data)]
    splits = _tables(table, names)
    report = DataReport(
        source=source,
        task=schema.task,
        target=schema.target,
        rows={name: part.num_rows for name, part in splits.items()},
        classes=_class_counts(splits, schema),
        sizes=_sizes(table, schema.task),
        duplicates=_duplicates(table),
        leakage=leakage,
        set_aside=group_set_aside(raw.set_aside),
        warnings=[note.removeprefix(WARNING) for note in notes if note.startswith(WARNING)],
        notes=[note for note in notes if not note.startswith(WARNING)],
    )
    return Dataset(schema=schema, splits=splits, report=report, recipe=asdict(data))


def _target(task: str, data: DataRecipe) -> str:
    """What a label of the task is; ``data.target`` chooses for classification alone."""
    if task in CLASSIFICATION:
        return data.target
    return "tags" if task == "token-classification" else "none"


def _column(table: pa.Table, name: str) -> list[Any] | None:
    return table[name].to_pylist() if name in table.column_names else None


def _keep_rows(raw: Raw, rows: Sequence[int]) -> Raw:
    keep = np.zeros(raw.table.num_rows, dtype=bool)
    keep[np.asarray(rows, dtype=np.int64)] = True
    return replace(raw, table=raw.table.filter(pa.array(keep)))


def _without_leaks(raw: Raw) -> tuple[Raw, dict[str, Any]]:
    """Rows without training copies of held-out ones, and what the report says of them."""
    table = raw.table
    leaking = leaking_rows(table["id"].to_pylist(), _column(table, "group"), _column(table, "split"))
    examples = [table["origin"][row].as_py() for row in leaking[:_EXAMPLES]]
    if leaking:
        raw = _keep_rows(raw, sorted(set(range(table.num_rows)) - set(leaking)))
    return raw, {"count": len(leaking), "examples": examples}


def _limited(raw: Raw, data: DataRecipe, seed: int) -> Raw:
    limit = data.limit
    if limit is None:
        return raw
    table = raw.table
    by_class = data.target == "class" and raw.task in CLASSIFICATION
    labels = [str(label) for label in table["label"].to_pylist()] if by_class else [""] * table.num_rows
    strata = list(zip(_column(table, "split") or [None] * table.num_rows, labels, strict=True))
    rows = limit_rows(table["id"].to_pylist(), strata, limit, seed)
    note = f"data.limit={limit}: {len(rows)} of {table.num_rows} rows are used, chosen by the seed"
    return replace(_keep_rows(raw, rows), notes=[*raw.notes, note])


def _strata(table: pa.Table, schema: Schema) -> list[Hashable]:
    """By what the division is balanced: the class; of several labels (or tags) the rarest; nothing for numbers and rows without."""
    if schema.target in ("number", "none"):
        return [0] * table.num_rows
    labels = table["label"].to_pylist()
    if schema.target == "class":
        return labels
    counts = Counter(label for several in labels for label in several)
    return [min(several, key=lambda label: (counts[label], label), default=-1) for several in labels]


# -- What must hold ---------------------------------------------------------------------------------------------------


def _check_enough(raw: Raw, data: DataRecipe) -> None:
    given = Counter(_column(raw.table, "split") or [])
    held = {name for name in ("validation", "test") if given[name]}
    pool = raw.table.num_rows - sum(given[name] for name in held)
    carved = [name for name, share in (("validation", data.val), ("test", data.test_share)) if share > 0 and name not in held]
    if held == {"validation"}:
        carved = []
    least = 2 * (1 + len(carved))
    if pool < least:
        raise DataError(
            f"only {pool} usable rows ({len(raw.set_aside)} set aside), expected at least {least} for {', '.join(['train', *carved])}. "
            "Add rows, or hold fewer out with data.val=0 data.test_share=0"
        )


def _check_classes(table: pa.Table, names: Sequence[str], given: Sequence[str | None] | None, schema: Schema) -> list[str]:
    """Warnings of classes that a held-out split lacks. Raises DataError for classes that training lacks."""
    if schema.target in ("number", "none"):
        return []
    present: dict[str, set[int]] = defaultdict(set)
    for name, label in zip(names, table["label"].to_pylist(), strict=True):
        present[name].update(label if isinstance(label, list) else [label])
    if schema.target == "class" and len(present["train"]) < 2:
        only = _listed(present["train"], schema)
        raise DataError(
            f"the training split has rows of one class only ({only}), expected at least two. Add training rows of another class"
        )
    notes = []
    for name in SPLITS[1:]:
        if name not in present:
            continue
        unseen = present[name] - present["train"]
        if unseen and given is not None and name in given:
            raise DataError(
                f"the {name} split has classes that training lacks: {_listed(unseen, schema)}. "
                "Add training rows of them, remove them, or mend their spelling (data.merge_labels=true)"
            )
        if unseen:
            notes.append(f"{WARNING}all rows with these labels are in the {name} split: {_listed(unseen, schema)}")
        if absent := present["train"] - present[name]:
            notes.append(f"{WARNING}the {name} split has no row of: {_listed(absent, schema)}")
    return notes


def _listed(indices: set[int], schema: Schema, most: int = 10) -> str:
    names = [repr(schema.labels[index]) for index in sorted(indices)]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _conflicts(table: pa.Table) -> list[str]:
    """A warning where identical rows have different labels."""
    if "label" not in table.column_names:
        return []
    first: dict[str, int] = {}
    labels, conflicts = table["label"].to_pylist(), []
    for row, row_id in enumerate(table["id"].to_pylist()):
        if labels[first.setdefault(row_id, row)] != labels[row]:
            conflicts.append((first[row_id], row))
    if not conflicts:
        return []
    a, b = (table["origin"][row].as_py() for row in conflicts[0])
    return [f"{WARNING}{len(conflicts)} rows are identical to an earlier row but have another label, e.g. {a} and {b}"]


def _about_splits(names: Sequence[str], given: Sequence[str | None] | None, data: DataRecipe) -> list[str]:
    found = set(names)
    held = {name for name in given or () if name in SPLITS[1:]}
    notes = []
    if "validation" in held and "test" not in found:
        notes.append("no test split: training and validation were given, and nothing is taken from them; give one with data.test")
    elif data.test_share > 0 and "test" not in found:
        notes.append(f"{WARNING}the test split is empty: the rows hang together (identical or of one group) and cannot be divided")
    if data.val > 0 and "validation" not in found:
        notes.append(f"{WARNING}the validation split is empty: the rows hang together (identical or of one group) and cannot be divided")
    return notes


# -- What the report holds --------------------------------------------------------------------------------------------


def _tables(table: pa.Table, names: Sequence[str]) -> dict[str, pa.Table]:
    """The rows of each split that has any, in their old order."""
    table = table.drop_columns([name for name in ("split", "group") if name in table.column_names])
    labels = np.asarray(names)
    return {name: table.filter(pa.array(labels == name)) for name in SPLITS if (labels == name).any()}


def _class_counts(splits: dict[str, pa.Table], schema: Schema) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {name: {} for name in schema.labels}
    for split, table in splits.items():
        for label in table["label"].to_pylist() if schema.labels else ():
            for index in label if isinstance(label, list) else [label]:
                row = counts[schema.labels[index]]
                row[split] = row.get(split, 0) + 1
    return counts


def _sizes(table: pa.Table, task: str) -> dict[str, Any]:
    texts = [name for name in COLUMNS.get(task, ()) if table.schema.field(name).type == pa.string()]
    if texts:
        lengths = [pc.fill_null(pc.utf8_length(table[name]), 0).to_numpy() for name in texts]
        return histogram(np.sum(lengths, axis=0), "characters")
    if "tokens" in table.column_names:
        return histogram(pc.list_value_length(table["tokens"]).to_numpy(), "words")
    height, width = ("image_height", "image_width") if "image_height" in table.column_names else ("height", "width")
    return histogram(pc.min_element_wise(table[height], table[width]).to_numpy(), "shorter side in pixels")


def _duplicates(table: pa.Table) -> dict[str, Any]:
    first: dict[str, int] = {}
    repeated = [(first[row_id], row) for row, row_id in enumerate(table["id"].to_pylist()) if first.setdefault(row_id, row) != row]
    origins = table["origin"]
    return {"count": len(repeated), "examples": [[origins[a].as_py(), origins[b].as_py()] for a, b in repeated[:_EXAMPLES]]}
