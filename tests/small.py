"""What the tests of whole commands share: small rows, and options that make small networks."""

from __future__ import annotations

IMAGE_OPTIONS = ["--model", "cnn", "model.width=16", "data.size=28", "train.epochs=12", "train.lr=0.01", "train.batch=8"]
TEXT_OPTIONS = ["--model", "gru", "model.width=16", "model.depth=1", "train.epochs=5", "train.lr=0.03", "train.batch=16"]


def review_rows(count: int = 40) -> list[tuple[str, str]]:
    """Chinese and English texts whose label is in their words; no two alike."""
    words = {"好": ["味道很好", "非常满意", "the food is good"], "坏": ["太难吃了", "很失望", "the food is bad"]}
    return [(f"{options[i % 3]}，第 {i} 次", label) for label, options in words.items() for i in range(count)]
