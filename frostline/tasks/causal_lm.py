"""Causal language modelling: the next token of documents, packed with separators; from zero or going on from weights."""

from __future__ import annotations

from frostline.tasks.tokens import language_task

TASK = language_task("causal-lm", "text")
