"""Reading a recipe: YAML files, ``key=value`` flags and Python values, all through one converter.

The converter knows each field's type, so ``lr: 3e-4`` is a number and ``cache: off`` a choice whatever YAML 1.1 thinks
of them. It also keeps where each value came from, for the table that is printed before a run.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from frostline.errors import RecipeError
from frostline.recipe import Recipe, describe

_COMMAND_LINE = "command line"


def resolve(
    path: str | Path | None, overrides: Iterable[str] = (), flags: Mapping[str, str] = types.MappingProxyType({})
) -> tuple[Recipe, dict[str, str]]:
    """The recipe of a YAML file (or the defaults), then ``flags``, then ``key=value`` overrides; and where each value came from.

    ``flags``: dotted keys with text that is taken as it stands. Returns the recipe and ``{dotted key: source}``, with sources
    such as ``recipe.yaml:12`` and ``command line``.
    """
    given: dict[str, tuple[Any, str]] = {}
    if path is not None:
        given.update(_expanded(_read_yaml(Path(path))))
    _lay_over(given, _expanded({key: (text, _COMMAND_LINE) for key, text in flags.items()}))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise RecipeError(f"{_COMMAND_LINE}: got {override!r}, expected key=value, for example train.lr=3e-4")
        _lay_over(given, _expanded(_flatten(key.strip(), _parse(key.strip(), text), _COMMAND_LINE)))
    return _build(Recipe, Recipe(), given, ""), {_field_of(key): source for key, (_, source) in given.items()}


def _field_of(key: str) -> str:
    """The field that a dotted key is an entry of; the key itself for all but entries of numbers by name."""
    return next((field for field in _lists() if key.startswith(f"{field}.")), key)


def _lay_over(given: dict[str, tuple[Any, str]], new: Mapping[str, tuple[Any, str]]) -> None:
    """Update ``given``. Another method on the command line takes the place of a file's whole `last 3`, the 3 included."""
    method, last = new.get("adapt.method"), given.get("adapt.last")
    if method is not None and method[0] != "last" and last is not None and last[1] != _COMMAND_LINE:
        del given["adapt.last"]
    given.update(new)


def assign(recipe: Recipe, values: Mapping[str, Any], source: str) -> Recipe:
    """A copy of ``recipe`` with the dotted keys of ``values`` replaced, each value checked."""
    flat = {key: (value, f"{source} {key}") for key, value in _flatten("", dict(values)).items()}
    return _build(type(recipe), recipe, _expanded(flat), "")


def _read_yaml(path: Path) -> dict[str, tuple[Any, str]]:
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"recipe {str(path)!r} cannot be read: {error.strerror}. Write one with: frostline init DATA > {path}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"recipe {str(path)!r} is not UTF-8 ({error}), expected text in UTF-8. Save it again in that encoding") from error
    try:
        tree = _compose(text, path.name)
    except yaml.YAMLError as error:
        raise RecipeError(_not_yaml(error, path.name)) from error
    if tree is None:
        return {}
    if not isinstance(tree, yaml.MappingNode):
        raise RecipeError(f"{path}:1: got {text[:40]!r}, expected keys such as data: and train:. Write a recipe with: frostline init DATA")
    return _flatten("", _plain(tree, path.name), path.name)


def _not_yaml(error: Any, name: str) -> str:
    """The parser's complaint with its line. An error of the reader (a control character) has a position in place of a mark."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or " ".join(str(error).split())
    where = f"{name}:{mark.line + 1}" if mark else name
    return f"{where}: got YAML that cannot be read: {problem}. Mend that line; names and values stand as in epochs: 3"


_DEEPEST = 20


def _compose(text: str, name: str) -> Any:
    """The nodes of a YAML text of plain values. Tags name code, and aliases and nesting can grow without end: all are refused."""
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        tag = getattr(event, "tag", None)
        strange = "an alias" if isinstance(event, yaml.AliasEvent) else f"the tag {tag!r}" if tag else ""
        if depth > _DEEPEST:
            strange = f"{depth} levels of nesting"
        if strange and depth:  # depth 0: a flag's value is only text
            raise RecipeError(f"{name}:{event.start_mark.line + 1}: got {strange}, expected plain values, such as epochs: 3. Remove it")  # type: ignore[union-attr]
    return yaml.compose(text, Loader=yaml.SafeLoader)


class _Text(str):
    """A scalar of a YAML file, still text, with the line that it stands on."""

    line: int | None = None
    quoted: bool = False


def _plain(node: Any, name: str) -> Any:
    """A YAML node as dicts, lists and :class:`_Text`; the field's type decides later what a scalar means."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        pairs: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise RecipeError(f"{name}:{key.start_mark.line + 1}: got a list or mapping for a key, expected a name, such as epochs: 3")
            if key.value in pairs:
                raise RecipeError(
                    f"{name}:{key.start_mark.line + 1}: the key {key.value!r} stands here for the second time; keep one of them"
                )
            pairs[key.value] = _plain(value, name)
        return pairs
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, name) for item in node.value]
    text = _Text(node.value)
    text.line, text.quoted = node.start_mark.line + 1, node.style is not None
    return text


def _parse(key: str, text: str) -> Any:
    """The value of ``key=text``: YAML for lists and whole sections; one value is text, whatever signs a path may hold."""
    import yaml

    if key in all_keys() and key not in _lists():
        return text
    try:
        tree = _compose(text, _COMMAND_LINE)
    except yaml.YAMLError:
        return text  # the field's type will judge it
    if tree is None or isinstance(tree, yaml.ScalarNode):
        return text
    return _plain(tree, _COMMAND_LINE)


def _flatten(key: str, value: Any, source: str = "argument") -> dict[str, tuple[Any, str]] | dict[str, Any]:
    """Nested dicts as dotted keys; with the source of each value unless values come from Python."""
    if isinstance(value, dict) and (value or not key):
        flat: dict[str, Any] = {}
        for name, item in value.items():
            flat.update(_flatten(f"{key}.{name}" if key else str(name), item, source))
        return flat
    if source == "argument":
        return {key: value}
    line = getattr(value, "line", None)
    return {key: (value, f"{source}:{line}" if line else source)}


_SHORTHAND = {"adapt": "method"}  # `adapt: lora` means `adapt: {method: lora}`


def _expanded(given: Mapping[str, tuple[Any, str]]) -> dict[str, tuple[Any, str]]:
    """``adapt: last 2`` written out as ``adapt.method`` and ``adapt.last``."""
    values: dict[str, tuple[Any, str]] = {}
    for key, (value, source) in given.items():
        if key not in _SHORTHAND or isinstance(value, dict) or _is_nothing(value):
            values[key] = (value, source)
            continue
        words = str(value).split()
        values[f"{key}.{_SHORTHAND[key]}"] = (words[0] if words else "", source)
        if len(words) == 2 and words[0] == "last":
            values[f"{key}.last"] = (words[1], source)
        elif len(words) > 1:
            raise RecipeError(f"{source}: {key} got {str(value)!r}, expected one method, such as head, lora or last 2")
    return values


def _is_nothing(value: Any) -> bool:
    """What stands for no value: nothing, an empty text, or YAML's null unless it is quoted."""
    if not isinstance(value, str):
        return value is None
    return not value or (value in ("~", "null", "Null", "NULL") and not getattr(value, "quoted", False))


def _build(cls: type, current: Any, values: Mapping[str, tuple[Any, str]], prefix: str) -> Any:
    hints = typing.get_type_hints(cls)
    changes: dict[str, Any] = {}
    below: dict[str, dict[str, tuple[Any, str]]] = {}
    for key, (value, source) in values.items():
        first, _, rest = key.partition(".")
        if first in hints and typing.get_origin(hints[first]) is dict:
            entries = changes.get(first, getattr(current, first))
            changes[first] = _with_entry(entries, rest, value, hints[first], f"{source}: {prefix + key}")
            continue
        if first not in hints or (rest and not dataclasses.is_dataclass(hints[first])):
            raise RecipeError(f"{source}: unknown key {prefix + key!r}{_nearest(prefix + key)}")
        if dataclasses.is_dataclass(hints[first]):
            if not rest:
                if value != {} and not _is_nothing(value):
                    received = str(value) if isinstance(value, _Text) else value
                    raise RecipeError(
                        f"{source}: {prefix + key} got {received!r}, expected keys below it: {', '.join(_names(hints[first]))}"
                    )
                continue
            below.setdefault(first, {})[rest] = (value, source)
        else:
            changes[first] = _convert(value, hints[first], prefix + first, source)
    for first, inner in below.items():
        changes[first] = _build(hints[first], getattr(current, first), inner, f"{prefix}{first}.")
    return dataclasses.replace(current, **changes)


def _with_entry(current: dict[str, Any], name: str, value: Any, hint: Any, where: str) -> dict[str, Any]:
    """A mapping of names to numbers with one more entry; an empty value for the whole empties it."""
    if name:
        source, _, key = where.partition(": ")
        return {**current, name: _convert(value, typing.get_args(hint)[1], key, source)}
    if value != {} and not _is_nothing(value):
        received = str(value) if isinstance(value, _Text) else value
        raise RecipeError(f"{where} got {received!r}, expected numbers by name, as in {{q_proj: 16}}")
    return {}


def _names(cls: type) -> list[str]:
    return [f.name for f in dataclasses.fields(cls)]


@functools.cache
def all_keys(cls: type = Recipe, prefix: str = "") -> tuple[str, ...]:
    """Every dotted key of a recipe."""
    keys: list[str] = []
    for name, hint in typing.get_type_hints(cls).items():
        keys += all_keys(hint, f"{prefix}{name}.") if dataclasses.is_dataclass(hint) else [prefix + name]  # type: ignore[arg-type]
    return tuple(keys)


@functools.cache
def _lists() -> frozenset[str]:
    """The keys whose value is a list, or numbers by name."""
    default = Recipe()
    return frozenset(key for key in all_keys() if isinstance(functools.reduce(getattr, key.split("."), default), list | dict))


def _nearest(key: str) -> str:
    """What was meant: the same name elsewhere, a name that is spelt like it, or one whose documentation begins with it."""
    section, _, leaf = key.rpartition(".")
    known = all_keys()
    here = [k for k in known if k.rpartition(".")[0] == section]
    by_leaf = {k.rpartition(".")[2]: k for k in [*known, *here]}  # of equal names, the one in this section
    close = [k for k in known if k.rpartition(".")[2] == leaf] or [
        by_leaf[name] for name in difflib.get_close_matches(leaf, by_leaf, 1, 0.65)
    ]
    close = close or [k for k in known if _documentation(k).lower().startswith(leaf.replace("_", " ").lower())]
    if close:
        return f"; did you mean {close[0]!r}?"
    below = section if here and section else ""
    names = [k.rpartition(".")[2] for k in here] if below else list(dict.fromkeys(k.partition(".")[0] for k in known))
    return f"; the keys {f'below {below}' if below else 'there'} are: {', '.join(names)}"


def _documentation(key: str) -> str:
    """The text under a dotted key's field."""
    cls: Any = Recipe
    *sections, leaf = key.split(".")
    for section in sections:
        cls = typing.get_type_hints(cls)[section]
    return describe(cls).get(leaf, "")


def _convert(value: Any, hint: Any, key: str, source: str) -> Any:
    """``value`` as the type that the field declares. Raises RecipeError with the source, the value and what was expected."""

    def refuse(expected: str) -> RecipeError:
        received = str(value) if isinstance(value, _Text) else value
        return RecipeError(f"{source}: {key} got {received!r}, expected {expected}")

    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(option for option in typing.get_args(hint) if option is not types.NoneType)
        if _is_nothing(value) or (hint is not str and isinstance(value, str) and value.lower() == "none"):
            return None
    if typing.get_origin(hint) is Literal:
        options = typing.get_args(hint)
        text = {True: "on", False: "off"}.get(value, str(value)) if isinstance(value, bool) else str(value)
        if text not in options:
            close = difflib.get_close_matches(text, options, 1)
            raise refuse(f"one of {', '.join(options)}" + (f"; did you mean {close[0]!r}?" if close else ""))
        return text
    if typing.get_origin(hint) is list:
        if isinstance(value, str):
            value = [] if _is_nothing(value) else [part.strip() for part in value.split(",") if part.strip()]
        if not isinstance(value, list | tuple) or not all(isinstance(item, str | int | float) for item in value):
            raise refuse("a list, as in [flatten, dense 256 relu]")
        return [str(item) for item in value]
    if hint is bool:
        switches = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}
        if str(value).lower() not in switches:
            raise refuse("on or off")
        return switches[str(value).lower()]
    if hint in (int, float):
        return _number(value, hint, refuse)
    if not isinstance(value, str | Path):
        raise refuse("text")
    return str(value)


def _number(value: Any, hint: type, refuse: Any) -> Any:
    expected = "a whole number, such as 32" if hint is int else "a number, such as 3e-4"
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise refuse(expected)
    try:
        number = hint(value)  # not by way of float, which would round a large seed
    except (ValueError, OverflowError):
        number = _whole(value) if hint is int else None
    if number is None or (hint is float and not math.isfinite(number)) or (isinstance(value, float) and number != value):
        raise refuse(expected)
    return number


def _whole(value: str | int | float) -> int | None:
    """``1e3`` and ``32.0`` are whole numbers too."""
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return int(number) if number.is_integer() else None
