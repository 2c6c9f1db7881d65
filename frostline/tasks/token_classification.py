"""Token classification: a tag for each token (named entities, parts of speech, segmentation).

The loss is the cross-entropy of the labelled tokens. What counts in the end are entities, as in the CoNLL-2003 shared task
(Tjong Kim Sang and De Meulder, 2003): one is right if its type, its first and its last token are. With the entities that are
right (t), predicted (p) and true (g), over the whole split:

    precision = t / p        recall = t / g        F1 = 2 t / (p + g)

micro over all types, macro as the mean over the types that occur, and F1 for each type. Entities are read from tags as seqeval
does by default (data/tags.py), and the numbers are seqeval's. A row keeps its three counts per type and its tokens' two, so
that nothing of the size of the logits is kept.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frostline.data.dataset import Schema
from frostline.data.tags import TagSet, entities, tag_set
from frostline.data.token_rows import IGNORED
from frostline.tasks import losses
from frostline.tasks.task import LossOptions, Task

_known = functools.lru_cache(maxsize=8)(tag_set)


def loss(outputs: Tensor, labels: Tensor, options: LossOptions) -> tuple[Tensor, Tensor]:
    """Logits (rows, tokens, tags) → the sum over labelled tokens, and their weight."""
    where = labels != IGNORED
    return losses.loss(outputs[where], labels[where], options)


def scores(schema: Schema, outputs: Tensor, labels: Tensor | None) -> Tensor:
    """float32 (rows, 3 · types + 2): entities of each type that are right, predicted, true; tokens that are right, and tokens.

    Without labels float32 (rows, tokens): the likeliest tag of every position.
    """
    likeliest = outputs.detach().argmax(dim=-1)
    if labels is None:
        return likeliest.float()
    where = labels != IGNORED
    row, guess, truth = (values.cpu().numpy() for values in (where.nonzero()[:, 0], likeliest[where], labels[where]))
    counts = np.zeros((len(labels), 2), dtype=np.float32)
    np.add.at(counts, row, np.stack([guess == truth, np.ones(len(row))], axis=1))
    parts = _entity_counts(guess, truth, row, len(labels), _known(schema.labels))
    return torch.from_numpy(np.concatenate([parts, counts], axis=1))


def _entity_counts(guess: np.ndarray, truth: np.ndarray, row: np.ndarray, rows: int, known: TagSet) -> np.ndarray:
    """float32 (rows, 3 · types): right, predicted, true."""
    found, real = entities(guess, row, known), entities(truth, row, known)
    ends, kinds = np.full(len(row), -1), np.full(len(row), -1)
    ends[real.first], kinds[real.first] = real.last, real.kind
    right = (ends[found.first] == found.last) & (kinds[found.first] == found.kind)
    counts = np.zeros((rows, 3, len(known.types)), dtype=np.float32)
    for part, row_of, kind in ((0, found.row[right], found.kind[right]), (1, found.row, found.kind), (2, real.row, real.kind)):
        np.add.at(counts[:, part], (row_of, kind), 1)
    return counts.reshape(rows, -1)


def metrics(schema: Schema, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """F1, precision and recall of entities (micro, then macro, then F1 of each type), and the share of tokens that are right."""
    types = _known(schema.labels).types
    total = scores.astype(np.float64).sum(axis=0)
    right, predicted, true = total[:-2].reshape(3, -1)
    correct, tokens = total[-2:]
    occurs = (predicted + true) > 0
    each = [_ratio(2 * right, predicted + true), _ratio(right, predicted), _ratio(right, true)]
    names = ("f1", "precision", "recall")
    micro = [_ratio(2 * right.sum(), predicted.sum() + true.sum()), _ratio(right.sum(), predicted.sum()), _ratio(right.sum(), true.sum())]
    found = {name: float(value) for name, value in zip(names, micro)}
    found["token_accuracy"] = float(_ratio(correct, tokens))
    found.update({f"{name}_macro": float(values[occurs].mean()) if occurs.any() else 0.0 for name, values in zip(names, each)})
    if types != ("_",):
        found.update({f"f1_{name}": float(value) for name, value, seen in zip(types, each[0], occurs) if seen})
    return found


def epoch_metrics(schema: Schema, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The same without single types."""
    kept = ("f1", "precision", "recall", "token_accuracy", "f1_macro")
    return {name: value for name, value in metrics(schema, scores, labels).items() if name in kept}


def named_entities(schema: Schema, words: Sequence[str], tags: Sequence[int | None]) -> list[dict[str, Any]]:
    """What a sentence's tags (indices; None: no prediction, which counts as O) say, for people.

    ``{"text", "label", "start", "end"}``: words ``start`` to ``end`` (exclusive). Of plain tags each word is one, O left out.

    >>> named_entities(Schema(task="token-classification", target="tags", labels=("O", "B-地", "I-地")), list("在北京"), [0, 1, 2])
    [{'text': '北京', 'label': '地', 'start': 1, 'end': 3}]
    """
    known = _known((*schema.labels, "O") if "O" not in schema.labels else schema.labels)
    outside = known.names.index("O")
    flat = np.array([outside if tag is None else tag for tag in tags], dtype=np.int64)
    found = entities(flat, np.zeros(len(flat), np.int64), known)
    spans = zip(found.first.tolist(), (found.last + 1).tolist(), found.kind.tolist())
    return [{"text": _joined(words[first:end]), "label": known.types[kind], "start": first, "end": end} for first, end, kind in spans]


def _joined(words: Sequence[str]) -> str:
    """Words as text: a space between two that end and begin in ASCII or another alphabet with spaces, none beside CJK characters."""
    text = ""
    for word in words:
        both = text[-1:] + word[:1]
        text += (" " if len(both) == 2 and all(ord(character) < 0x2E80 for character in both) else "") + word
    return text


def running(schema: Schema, outputs: Tensor, labels: Tensor) -> tuple[float, float]:
    """Labelled tokens that are right, and labelled tokens."""
    where = labels != IGNORED
    return float((outputs.argmax(dim=-1) == labels)[where].sum()), float(where.sum())


def running_name(schema: Schema) -> str:
    """What :func:`running` counts."""
    return "token_accuracy"


def best_by(schema: Schema) -> str:
    """The checkpoint with the best F1 of entities is kept."""
    return "f1"


def decode(schema: Schema, row: np.ndarray) -> dict[str, Any]:
    """One row's counts as its metrics; what its tags say is in :func:`named_entities`."""
    return epoch_metrics(schema, row[None], np.zeros(0))


def _ratio(above: Any, below: Any) -> Any:
    """Division with 0 / 0 = 0."""
    return np.asarray(above) / np.where(np.asarray(below) == 0, 1, below)


TASK = Task(
    name="token-classification",
    input_column="tokens",
    loss=loss,
    scores=scores,
    metrics=metrics,
    epoch_metrics=epoch_metrics,
    best_by=best_by,
    running=running,
    running_name=running_name,
    decode=decode,
)
