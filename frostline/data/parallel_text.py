"""A text and what is to be made of it, for translation and summarisation.

Tables         a column of sources and one of targets; or a column ``translation`` of ``{"en": …, "zh": …}``
Two files      ``train.en`` and ``train.zh``, line by line: in a folder all such pairs, or the pair of the file that is named
TMX, PO, MO    translation_files.py; in a folder beside pairs of files, which go in the direction of its TMX files

Where two columns (or files) are named after languages, the first is the source; data.input_column and data.label_column decide
otherwise. Rows with the same source stay in one split, lest a text that is tested on was learned with another target.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from frostline.data.columns import NAMES, choose_column, find_column
from frostline.data.encodings import read_text
from frostline.data.places import place_fault
from frostline.data.raw import Raw, SetAside
from frostline.data.split import refuse_lost
from frostline.data.tables import TABLE_SUFFIXES, Table, spell_column
from frostline.data.text_sources import SPLIT_FOLDERS, group_column, text_id
from frostline.data.translation_files import SUFFIXES, Pairs, read_pairs
from frostline.errors import DataError
from frostline.recipe import DataRecipe

_LANGUAGE = re.compile(r"[a-z]{2,3}([-_][A-Za-z]{2,4})?")
_SIDE = re.compile(r"[a-z]{2}([-_][A-Za-z]{2,4})?")
_NO_LANGUAGES = {"id", "url", "idx", "no", "num", "key", "tag", "row", "md", "py", "txt", "log"}


def from_table(table: Table, recipe: DataRecipe) -> Raw:
    """Rows of a table; columns as the recipe names them, or guessed and noted."""
    where = table.origins[0].rpartition(":")[0] or "table"
    columns, notes = with_translations(table.table)
    source, target, more = _choose(columns.column_names, recipe, where)
    texts = [_texts(columns, name) for name in (source, target)]
    groups = None if recipe.group_column is None else group_column(table.table, recipe.group_column, where).to_pylist()
    pairs = Pairs(sources=texts[0], targets=texts[1], origins=table.origins, set_aside=table.set_aside, notes=[*table.notes, *notes, *more])
    return _raw(pairs, recipe, groups)


def from_path(path: Path, recipe: DataRecipe) -> Raw | None:
    """The pairs of a TMX, PO or MO file, of two parallel files, or of a folder of them; None where there is none."""
    if path.is_dir():
        return _from_folder(path, recipe)
    suffix = path.suffix.lower()
    if not path.is_file() or suffix in TABLE_SUFFIXES:
        return None
    if suffix in SUFFIXES:
        return _raw(read_pairs(path, recipe), recipe)
    partners = [other for other in _like(path) if other != path]
    if len(partners) != 1:
        listed = ", ".join(repr(other.name) for other in partners) or "none"
        raise DataError(
            f"{path.name} holds one side of a parallel text, expected one file beside it with the same name and another ending; "
            f"there: {listed}. Put the other side beside it, as in {path.stem}.en and {path.stem}.zh"
        )
    return _raw(_from_two(path, partners[0], recipe), recipe)


# -- Columns ----------------------------------------------------------------------------------------------------------


def with_translations(table: pa.Table) -> tuple[pa.Table, list[str]]:
    """The table with a column for each language, where a column ``translation`` holds them together."""
    if "translation" not in table.column_names:
        return table, []
    rows = []
    for spelled in spell_column(table["translation"].to_pylist()).to_pylist():
        try:
            value = json.loads(spelled) if isinstance(spelled, str) and spelled.startswith("{") else None
        except (ValueError, RecursionError):
            value = None
        rows.append(value if isinstance(value, dict) else {})
    languages = list(dict.fromkeys(name for row in rows for name in row))
    if len(languages) < 2:
        return table, []
    columns = {name: spell_column([row.get(name) for row in rows]) for name in languages}
    return pa.table(columns), [f"column 'translation': {', '.join(map(repr, languages))}"]


def _choose(names: Sequence[str], recipe: DataRecipe, where: str) -> tuple[str, str, list[str]]:
    """``(source column, target column, notes)``."""
    source, target = recipe.input_column, recipe.label_column
    languages = [name for name in names if _LANGUAGE.fullmatch(name) and name.casefold() not in _NO_LANGUAGES]
    guessed = (find_column(names, "source"), find_column(names, "target"))
    if len(languages) == 2 and None in guessed and set(filter(None, (source, target))) <= set(languages):
        source = source or next(name for name in languages if name != target)
        target = target or next(name for name in languages if name != source)
        given = recipe.input_column is not None and recipe.label_column is not None
        return source, target, [] if given else [f"from {source!r} to {target!r} (set data.input_column, data.label_column)"]
    source, notes = choose_column(names, "source", source, where)
    rest = [name for name in names if name != source]
    if recipe.label_column is None and len(rest) == 1:
        return source, rest[0], [*notes, f"target column: {rest[0]!r} (the only other one)"]
    target, more = choose_column(names if recipe.label_column else rest, "target", recipe.label_column, where)
    if target == source:
        raise DataError(f"{where}: {source!r} is the column of the source and of the target, expected two. Set data.label_column=NAME")
    return source, target, [*notes, *more]


def source_column(names: Sequence[str], given: str | None, where: str) -> tuple[str, list[str]]:
    """``(the column of texts that a model is to translate, notes)``, by the rules of training, with or without a column of targets."""
    languages = [name for name in names if _LANGUAGE.fullmatch(name) and name.casefold() not in _NO_LANGUAGES]
    source, target = (find_column(names, role) for role in ("source", "target"))
    if given is None and languages and (source is None or (target is None and len(languages) == 2)):
        others = f"; {', '.join(map(repr, languages[1:]))} would fit too" if languages[1:] else ""
        return languages[0], [f"source column: {languages[0]!r} (guessed; set data.input_column{others})"]
    return choose_column(names, "source", given, where)


def _texts(table: pa.Table, name: str) -> list[str]:
    values = spell_column(table[name].to_pylist()).to_pylist()
    return ["\n".join(value) if isinstance(value, list) else value or "" for value in values]


# -- Files ------------------------------------------------------------------------------------------------------------


def _like(path: Path) -> list[Path]:
    """Files beside one, itself included, whose names differ in the ending alone."""
    return sorted(
        other
        for other in path.parent.iterdir()
        if other.stem == path.stem and other.suffix and other.suffix.lower() not in TABLE_SUFFIXES and other.is_file()
    )


def _from_two(source: Path, target: Path, recipe: DataRecipe) -> Pairs:
    (left, _), (right, _) = (read_text(path, recipe.encoding) for path in (source, target))
    lines = [text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n") for text in (left, right)]
    if len(lines[0]) != len(lines[1]):
        raise DataError(
            f"{source.name} has {len(lines[0])} lines and {target.name} has {len(lines[1])}, expected as many of one as of the other: "
            f"line by line they belong together. Look where they part with: paste {source} {target}"
        )
    origins = [f"{source.name}:{number}" for number in range(1, len(lines[0]) + 1)]
    ends = (source.suffix[1:], target.suffix[1:])
    languages = ends if all(map(_SIDE.fullmatch, ends)) else None
    note = f"{source.name} to {target.name}, line by line"
    return Pairs(sources=lines[0], targets=lines[1], origins=origins, notes=[note], languages=languages)


def _from_folder(folder: Path, recipe: DataRecipe) -> Raw | None:
    found = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and not path.is_dir()]
    aside = [SetAside(origin=str(path), reason=fault) for path in found if (fault := place_fault(path, folder))]
    files = [path for path in found if not place_fault(path, folder)]
    catalogues = [path for path in files if path.suffix.lower() in SUFFIXES]
    doubled = [path for path in catalogues if path.suffix.lower() == ".mo" and path.with_suffix(".po") in catalogues]
    parts: dict[str, Pairs] = {path.name: read_pairs(path, recipe) for path in catalogues if path not in doubled}
    direction = next((pairs.languages for pairs in parts.values() if pairs.languages), None)
    by_stem: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in files:
        if path.suffix and path.suffix.lower() not in (*TABLE_SUFFIXES, *SUFFIXES):
            by_stem[path.stem][path.suffix[1:]] = path
    known = bool(catalogues) or any(len(ends) == 2 and all(map(is_side, ends)) for ends in by_stem.values())
    left: list[SetAside] = []
    for stem, ends in by_stem.items():
        two = _two_of(list(ends), known, recipe)
        left += [SetAside(origin=str(ends[end]), reason=why) for end, why in _left_out(list(ends), two).items()]
        if two:
            source, target = _directed(two, direction, recipe, str(folder / stem))
            parts[stem] = _from_two(ends[source], ends[target], recipe)
    tables = [path.name for path in files if path.suffix.lower() in TABLE_SUFFIXES]
    if left and not parts and not tables:
        raise DataError(
            f"{str(folder)!r} holds no two files that can be read together; {Path(left[0].origin).name!r}: {left[0].reason}. "
            "Put both sides there under one name, as in train.en and train.zh"
        )
    if not parts:
        return None
    notes = [f"{path.name} was not read: {path.stem}.po holds its messages" for path in doubled]
    if tables:
        notes.append(f"warning: {len(tables)} tables beside the parallel texts were not read, e.g. {tables[0]!r}; give one with data.path")
    return _joined(parts, [*aside, *left], [*notes, *_directions(parts)], recipe)


def _two_of(ends: list[str], beside_others: bool, recipe: DataRecipe) -> list[str]:
    """The endings of the two sides of a text among those that its files have; none where there are no two."""
    sides = [end for end in ends if is_side(end)]
    named = [end for end in (recipe.input_column, recipe.label_column) if end in ends]
    if len(ends) > 2 and len(named) == 2:
        return named
    if len(ends) == 2 and (len(sides) == 2 or not beside_others):  # a readme.md and a readme.txt are none
        return ends
    return []


def is_side(end: str) -> bool:
    """Whether a file of this ending (without its dot) may be one side of a parallel text: a language's code, source, target, src, tgt."""
    language = bool(_SIDE.fullmatch(end)) and end not in _NO_LANGUAGES
    return language or end.casefold() in (*NAMES["source"][:2], *NAMES["target"][:2])


def _left_out(ends: list[str], two: list[str]) -> dict[str, str]:
    """Endings that look like a side of a text, and why the file is not read."""
    others = [end for end in ends if end not in two and is_side(end)]
    if len(ends) == 2 and not two:
        why = "beside other parallel texts only endings that name languages, as .en and .zh do, make two sides"
        return dict.fromkeys(ends, why)
    if len(others) == 1 and not two:
        return {others[0]: "one side of a parallel text, without the other"}
    why = f"one of {len(others) + len(two)} sides; data.input_column and data.label_column name the two that are read"
    return dict.fromkeys(others, why)


def _directed(two: list[str], direction: tuple[str, str] | None, recipe: DataRecipe, where: str) -> tuple[str, str]:
    """The endings of source and target: as the recipe says, else as the TMX files beside them go, else as they stand."""
    if direction is not None and recipe.input_column is None and recipe.label_column is None:
        same = [next((end for end in two if _language(end) == _language(name)), None) for name in direction]
        if same[0] is not None and same[1] is not None and same[0] != same[1]:
            return same[0], same[1]
    source, target, _ = _choose(two, recipe, where)
    return source, target


def _language(name: str) -> str:
    """zh of zh-CN."""
    return re.split("[-_]", name)[0].casefold()


def _directions(parts: dict[str, Pairs]) -> list[str]:
    """A warning where files go in different directions, since a model would learn both at once."""
    found: dict[tuple[str, ...], str] = {}
    for name, pairs in parts.items():
        if pairs.languages:
            found.setdefault(tuple(map(_language, pairs.languages)), name)
    if len(found) < 2:
        return []
    listed = ", ".join(f"{name} from {source!r} to {target!r}" for (source, target), name in found.items())
    return [f"warning: the files go in different directions: {listed}; name one with data.input_column and data.label_column"]


def _joined(parts: dict[str, Pairs], aside: list[SetAside], notes: list[str], recipe: DataRecipe) -> Raw:
    """The pairs of several files, split as the files' names say if one is named after the training split."""
    splits = {name: SPLIT_FOLDERS.get(re.split(r"[-_.]", name)[0].casefold()) for name in parts}
    by_name = "train" in splits.values()
    joined, given = Pairs(set_aside=aside, notes=notes), []
    for name, pairs in parts.items():
        if by_name and splits[name] is None:
            joined.notes.append(f"warning: {name} was not read: its name is no split")
            continue
        joined.sources += pairs.sources
        joined.targets += pairs.targets
        joined.origins += pairs.origins
        joined.set_aside += pairs.set_aside
        joined.notes += pairs.notes
        given += [splits[name]] * len(pairs.sources)
    raw = _raw(joined, recipe, splits=given if by_name else None)
    if by_name:
        places = [*joined.origins, *parts]
        refuse_lost(places, [*given, *splits.values()], raw.table["split"].to_pylist(), raw.set_aside)
    return raw


# -- Rows -------------------------------------------------------------------------------------------------------------


def _raw(pairs: Pairs, recipe: DataRecipe, groups: list[str | None] | None = None, splits: Sequence[str | None] | None = None) -> Raw:
    sides = list(zip(pairs.sources, pairs.targets, strict=True))
    reasons = ["no source" if not source.strip() else "no target" if not target.strip() else None for source, target in sides]
    kept = [row for row, reason in enumerate(reasons) if reason is None]
    aside = [SetAside(origin=origin, reason=reason) for origin, reason in zip(pairs.origins, reasons) if reason]
    if not kept:
        first = [*aside, *pairs.set_aside][:1]
        why = f"{len(aside) + len(pairs.set_aside)} set aside, first {first[0].origin}: {first[0].reason}" if first else "there is none"
        raise DataError(f"no row has a source and a target ({why}). Name the columns with data.input_column=NAME data.label_column=NAME")
    notes = list(dict.fromkeys(pairs.notes))
    sources, targets = ([texts[row].strip() for row in kept] for texts in (pairs.sources, pairs.targets))
    columns: dict[str, list[str | None]] = {
        "id": [text_id(f"{source}\x1f{target}") for source, target in zip(sources, targets)],
        "origin": [pairs.origins[row] for row in kept],
        "source": [*sources],
        "target": [*targets],
    }
    repeated = len(set(zip(sources, targets))) - len(set(sources))
    if groups is not None:
        columns["group"] = [groups[row] for row in kept]
    elif repeated and splits is None and recipe.validation is None and recipe.test is None:
        columns["group"] = [text_id(source) for source in sources]
        notes.append(f"{repeated} sources have more than one target; rows of one source stay in one split")
    if splits is not None:
        columns["split"] = [splits[row] for row in kept]
    table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    task = "summarisation" if recipe.task == "summarisation" else "translation"
    return Raw(task=task, table=table, set_aside=[*pairs.set_aside, *aside], notes=notes)
