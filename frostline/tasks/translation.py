"""Translation: a source text to its target, by an encoder-decoder, or by a decoder with a request."""

from __future__ import annotations

from frostline.tasks.tokens import language_task

TASK = language_task("translation", "source")
