"""Dataset: the rows of each split as Arrow tables, with what a label means and the report on how they were made.

Columns of every split table:

``id``      string, hash of the row's content (hex); identical rows have identical ids
``label``   int32 (target class), list<int32> (multi-label, and tags: one a token) or float64 (number); none for target none
others      what the task's row holds: COLUMNS (``text`` for text classification, ``messages`` for chat …)
images      ``path`` string (absolute), or, for arrays handed over in memory, ``pixels`` binary (height × width × channels,
            uint8, row-major) with ``height``, ``width``, ``channels`` int32
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from frostline.data.report import DataReport
from frostline.errors import DataError
from frostline.files import write_atomically
from frostline.recipe import TaskName

SPLITS = ("train", "validation", "test")

COLUMNS: dict[str, dict[str, pa.DataType]] = {
    "text-classification": {"text": pa.string()},
    "token-classification": {"tokens": pa.list_(pa.string())},
    "chat": {"messages": pa.string(), "tools": pa.string()},
    "causal-lm": {"text": pa.string()},
    "preference": {"prompt": pa.string(), "chosen": pa.string(), "rejected": pa.string()},
    "reward": {"prompt": pa.string(), "chosen": pa.string(), "rejected": pa.string()},
    "translation": {"source": pa.string(), "target": pa.string()},
    "summarisation": {"source": pa.string(), "target": pa.string()},
    "embedding": {"first": pa.string(), "second": pa.string(), "negative": pa.string(), "score": pa.float64()},
}
"""Columns of a task's rows beside ``id`` and ``label``. Conversations (messages; prompt, chosen, rejected) are JSON lists of messages."""

_LABEL_TYPES = {"class": pa.int32(), "multi-label": pa.list_(pa.int32()), "tags": pa.list_(pa.int32()), "number": pa.float64()}


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What is to be learned: the task, what a label is, and the class names in the order of their indices."""

    task: TaskName
    target: Literal["class", "multi-label", "number", "tags", "none"] = "class"
    """tags: a class for each token. none: the rows themselves say what is to be learned."""
    labels: tuple[str, ...] = ()

    @property
    def outputs(self) -> int:
        """How many numbers the network ends in (0: as the network has them, a vocabulary's worth or a vector)."""
        return 1 if self.target == "number" or self.task == "reward" else len(self.labels)


def labels_tensor(table: pa.Table, schema: Schema) -> torch.Tensor:
    """The labels of a split as batches hold them: int64 (rows,) for a class, float32 (rows, outputs) for several or numbers.

    Empty where a row has no label of its own, but each token has one.
    """
    if schema.target in ("tags", "none"):
        return torch.empty(0)
    if schema.target == "class":
        return torch.from_numpy(table["label"].to_numpy().astype(np.int64))
    if schema.target == "number":
        return torch.from_numpy(table["label"].to_numpy().astype(np.float32)).unsqueeze(1)
    hot = torch.zeros(table.num_rows, schema.outputs)
    for row, labels in enumerate(table["label"].to_pylist()):
        hot[row, labels] = 1.0
    return hot


@dataclass(kw_only=True)
class Dataset:
    """The product of ``prepare``: split tables, their schema, the report, and the recipe that made them."""

    schema: Schema
    splits: dict[str, pa.Table]
    report: DataReport
    recipe: dict[str, Any] = field(default_factory=dict)
    """The DataRecipe as a dict."""

    @property
    def task(self) -> Schema:
        """The schema: ``fl.load("vgg16", task=data.task)`` reads the kind of task and the class names from it."""
        return self.schema

    @property
    def fingerprint(self) -> str:
        """Hash of the schema and of every row's id and label, split by split (hex)."""
        digest = hashlib.sha256(json.dumps(asdict(self.schema), sort_keys=True).encode())
        for name, table in self.splits.items():
            digest.update(name.encode())
            labels = table["label"].to_pylist() if "label" in table.column_names else [""] * table.num_rows
            for row_id, label in zip(table["id"].to_pylist(), labels, strict=True):
                digest.update(f"{row_id}:{label}\n".encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return sum(table.num_rows for table in self.splits.values())

    def __str__(self) -> str:
        return str(self.report)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``dataset.json`` and one Arrow file per split; each file appears whole or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in self.splits.items():
            sink = pa.BufferOutputStream()
            with pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
            write_atomically(folder / f"{name}.arrow", sink.getvalue())
        content = {"schema": asdict(self.schema), "splits": list(self.splits), "report": self.report.to_dict(), "recipe": self.recipe}
        write_atomically(folder / "dataset.json", json.dumps(content, ensure_ascii=False, indent=1).encode())


def load_dataset(folder: str | os.PathLike[str]) -> Dataset:
    """Read what :meth:`Dataset.save` wrote; tables are memory-mapped. Raises DataError where something is missing or damaged."""
    folder = Path(folder)
    try:
        content = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        schema = _checked_schema(Schema(**{**content["schema"], "labels": tuple(content["schema"]["labels"])}))
        splits = {}
        for name in content["splits"]:
            if name not in SPLITS:
                raise DataError(f"{folder / 'dataset.json'}: split {name!r} is unknown, expected one of {', '.join(SPLITS)}")
            table = pa.ipc.open_file(pa.memory_map(str(folder / f"{name}.arrow"))).read_all()
            splits[name] = _checked_table(table, schema, f"{name}.arrow")
        return Dataset(schema=schema, splits=splits, report=DataReport.from_dict(content["report"]), recipe=content["recipe"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, pa.ArrowException) as error:
        raise DataError(
            f"{str(folder)!r} is not a readable prepared dataset ({error}). Prepare it again with: frostline prepare DATA --out FOLDER"
        ) from error


def _checked_schema(schema: Schema) -> Schema:
    """The schema of a file, whose values may be anything."""
    for name in ("task", "target"):
        options = get_args(get_type_hints(Schema)[name])
        if getattr(schema, name) not in options:
            raise ValueError(f"schema.{name} is {getattr(schema, name)!r}, expected one of {', '.join(options)}")
    least = {"class": 2, "multi-label": 1, "tags": 1}.get(schema.target, 0)
    if not all(isinstance(label, str) for label in schema.labels) or len(set(schema.labels)) < max(least, len(schema.labels)):
        raise ValueError(f"schema.labels is {schema.labels!r}, expected at least {least} different names")
    return schema


def _checked_table(table: pa.Table, schema: Schema, name: str) -> pa.Table:
    """A table with the columns that the schema asks for and labels that it knows; its offsets stay inside its buffers."""
    table.validate(full=True)
    needed = {"id": pa.string(), **({"label": _LABEL_TYPES[schema.target]} if schema.target in _LABEL_TYPES else {})}
    if schema.task != "image-classification":
        needed.update(COLUMNS[schema.task])
    elif "pixels" in table.column_names:
        needed.update(pixels=pa.binary(), height=pa.int32(), width=pa.int32(), channels=pa.int32())
    else:
        needed["path"] = pa.string()
    for column, expected in needed.items():
        found = table.schema.field(column).type if column in table.column_names else None
        if found != expected:
            raise ValueError(f"{name}: column {column!r} is {found}, expected {expected}")
        if column in ("id", "label") and table[column].null_count:
            raise ValueError(f"{name}: column {column!r} lacks {table[column].null_count} values, expected one in every row")
    if schema.labels and table.num_rows:
        labels = table["label"] if schema.target == "class" else pc.list_flatten(table["label"])
        low, high = pc.min_max(labels).as_py().values()
        if low is not None and not 0 <= low <= high < len(schema.labels):
            raise ValueError(f"{name}: labels run from {low} to {high}, expected 0 to {len(schema.labels) - 1}")
    return table
