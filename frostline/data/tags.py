"""Tags of tokens, and the entities that they mean.

A tag is a prefix and a type: ``B-PER`` begins a person, ``I-PER`` goes on with it, ``E-PER`` ends it, ``S-PER`` is a person of
one token, ``O`` is outside. Schemes: BIO (Ramshaw and Marcus, "Text chunking using transformation-based learning", 1995, in the
form where every entity begins with B), BIOES, and IOB1, where B stands only between two entities of one type that touch. BMES and
BILOU are BIOES in other letters. Tags that are all without a prefix (parts of speech) are plain: each token is its own entity.

Broken sequences (an I without a B) are read as conlleval and seqeval read them by default: an entity begins at B and S, behind O,
E and S, and where the type changes; it ends behind E and S, before B, S and O, and where the type changes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from frostline.data.raw import SetAside

OUTSIDE = "O"
_PREFIXES = "OBIES"
_O, _B, _I, _E, _S = range(5)
_TAG = re.compile(r"[BIES](-.*)?", re.DOTALL)
_OTHER_LETTERS = {"M": "I", "L": "E", "U": "S", "W": "S"}
# Rows: the tag before; columns: the tag itself; in the order of _PREFIXES.
_BEGINS = np.array([[0, 1, 1, 1, 1], [0, 1, 0, 0, 1], [0, 1, 0, 0, 1], [0, 1, 1, 1, 1], [0, 1, 1, 1, 1]], dtype=bool)
_ENDS = np.array([[0, 0, 0, 0, 0], [1, 1, 0, 0, 1], [1, 1, 0, 0, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]], dtype=bool)


@dataclass(frozen=True, kw_only=True)
class TagSet:
    """What the names of tags mean, in the order of their indices."""

    names: tuple[str, ...]
    scheme: Literal["BIO", "BIOES", "plain"]
    types: tuple[str, ...]
    """Kinds of entities, sorted; of plain tags all but O. Tags that are a prefix alone have the type _."""
    prefix: np.ndarray
    """int64 (tags,): O, B, I, E or S as 0 to 4; for plain tags O or S."""
    kind: np.ndarray
    """int64 (tags,): index in ``types``; -1 for O."""


@dataclass(frozen=True, kw_only=True)
class Entities:
    """Entities of some rows, in their order; all int64 (entities,)."""

    row: np.ndarray
    first: np.ndarray
    """Position of the first token among all tokens of all rows."""
    last: np.ndarray
    """Position of the last token."""
    kind: np.ndarray


def tag_set(names: Sequence[str]) -> TagSet:
    """What the tags mean.

    >>> known = tag_set(["O", "B-地点", "I-地点"])
    >>> known.scheme, known.types
    ('BIO', ('地点',))
    """
    marked = [name for name in names if name != OUTSIDE]
    plain = not marked or not all(_TAG.fullmatch(name) for name in marked) or not any(name[0] in "BIS" for name in marked)
    kinds = [OUTSIDE if name == OUTSIDE else name if plain else name[2:] or "_" for name in names]
    types = sorted({kind for name, kind in zip(names, kinds) if name != OUTSIDE})
    letters = ["O" if name == OUTSIDE else "S" if plain else name[0] for name in names]
    return TagSet(
        names=tuple(names),
        scheme="plain" if plain else "BIOES" if {"E", "S"} & set(letters) else "BIO",
        types=tuple(types),
        prefix=np.array([_PREFIXES.index(letter) for letter in letters], dtype=np.int64),
        kind=np.array([-1 if name == OUTSIDE else types.index(kind) for name, kind in zip(names, kinds)], dtype=np.int64),
    )


def entities(tags: np.ndarray, rows: np.ndarray, known: TagSet) -> Entities:
    """The entities of tokens with these tags, which stand in these rows (ascending): both int64 (tokens,)."""
    prefix, kind = known.prefix[tags], known.kind[tags]
    if known.scheme == "plain":
        first = np.flatnonzero(prefix != _O)
        return Entities(row=rows[first], first=first, last=first, kind=kind[first])
    border = np.diff(rows, prepend=-1, append=-1) != 0  # (tokens + 1,): a row begins at the token, or ends behind the last
    before, own = np.append(_O, prefix), np.append(prefix, _O)
    changed = np.append(-1, kind) != np.append(kind, -1)
    begins = (_BEGINS[np.where(border, _O, before), own] | (changed & (own != _O)))[:-1]
    ends = (_ENDS[before, np.where(border, _O, own)] | (changed & (before != _O)))[1:]
    first = np.flatnonzero(begins)
    return Entities(row=rows[first], first=first, last=np.flatnonzero(ends), kind=kind[first])


def repaired(sentences: list[list[str]], origins: Sequence[str]) -> tuple[list[list[str]], list[str]]:
    """The tags with every entity written as its scheme asks for, and notes of what was changed; plain tags stay as they are.

    >>> repaired([["O", "I-人", "B-人"], ["B-人"]], ["x:1", "x:5"])[0]
    [['O', 'B-人', 'B-人'], ['B-人']]
    """
    sentences, notes = _usual_letters(sentences)
    known = tag_set(sorted({tag for tags in sentences for tag in tags}))
    if known.scheme == "plain":
        return sentences, [*notes, *_half_marked(known)]
    index = {name: number for number, name in enumerate(known.names)}
    flat = np.array([index[tag] for tags in sentences for tag in tags], dtype=np.int64)
    rows = np.repeat(np.arange(len(sentences)), [len(tags) for tags in sentences])
    found = entities(flat, rows, known)
    written = _written(found, known, len(flat), bare={name[0] for name in known.names if len(name) == 1})
    old = [known.names[tag] for tag in flat]
    changed = [place for place, (was, now) in enumerate(zip(old, written)) if was != now]
    ends = np.cumsum([len(tags) for tags in sentences])
    result = [written[end - len(tags) : end] for end, tags in zip(ends, sentences)]
    if not changed:
        return result, notes
    if known.scheme == "BIO" and _is_iob1(flat, rows, found, known):
        return result, [*notes, f"tags: IOB1, written as BIO ({len(changed)} entities begin with B now)"]
    place = changed[0]
    example = f"{origins[rows[place]]}: {old[place]} became {written[place]}"
    return result, [*notes, f"warning: {len(changed)} of {len(flat)} tags did not fit {known.scheme} and were repaired, e.g. {example}"]


def tag_counts(sentences: list[list[str]], tokens: list[list[str]], origins: list[str]) -> tuple[list[int], list[SetAside]]:
    """Which sentences have a tag for each token, and the others with the reason."""
    kept, aside = [], []
    for row, (words, tags) in enumerate(zip(tokens, sentences, strict=True)):
        if words and len(words) == len(tags):
            kept.append(row)
        else:
            reason = f"{len(words)} tokens but {len(tags)} tags" if words else "no token"
            aside.append(SetAside(origin=origins[row], reason=reason))
    return kept, aside


def _usual_letters(sentences: list[list[str]]) -> tuple[list[list[str]], list[str]]:
    """BMES and BILOU with the letters of BIOES, where all tags are of such a scheme."""
    names = {tag for tags in sentences for tag in tags if tag != OUTSIDE}
    letters = {name[0] for name in names if name}
    if not names or not letters & set(_OTHER_LETTERS) or not letters & {"B"} or not letters <= {*"BIES", *_OTHER_LETTERS}:
        return sentences, []
    if not all(len(name) == 1 or name[1:2] == "-" for name in names):
        return sentences, []
    new = {name: _OTHER_LETTERS.get(name[0], name[0]) + name[1:] for name in names} | {OUTSIDE: OUTSIDE}
    scheme = "BILOU" if letters & {"L", "U"} else "BMES"
    return [[new[tag] for tag in tags] for tags in sentences], [f"tags: {scheme}, written as BIOES"]


def _half_marked(known: TagSet) -> list[str]:
    marked = [name for name in known.names if re.fullmatch(r"[BIES]-.+", name)]
    strange = [name for name in known.names if name != OUTSIDE and name not in marked]
    if not marked or not strange:
        return []
    return [f"warning: tags such as {marked[0]!r} have a prefix, but {strange[0]!r} has none, so every tag is measured as it stands"]


def _written(found: Entities, known: TagSet, tokens: int, bare: set[str]) -> list[str]:
    """The tag of each token, from the entities."""
    written = [OUTSIDE] * tokens
    for first, last, kind in zip(found.first.tolist(), found.last.tolist(), found.kind.tolist()):
        name = known.types[kind]
        ending = "" if name == "_" and bare else f"-{name}"
        written[first : last + 1] = [f"I{ending}"] * (last + 1 - first)
        written[first] = f"B{ending}"
        if known.scheme == "BIOES":
            written[last] = f"E{ending}" if last > first else f"S{ending}"
    return written


def _is_iob1(flat: np.ndarray, rows: np.ndarray, found: Entities, known: TagSet) -> bool:
    """Whether B stands only where it is needed: behind an entity of the same type."""
    begins_with_b = found.first[known.prefix[flat[found.first]] == _B]
    before = np.maximum(begins_with_b - 1, 0)
    needed = (begins_with_b > 0) & (rows[before] == rows[begins_with_b]) & (known.kind[flat[before]] == known.kind[flat[begins_with_b]])
    return bool(needed.all())
