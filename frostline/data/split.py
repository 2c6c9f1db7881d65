"""Dividing rows into training, validation and test.

The unit is a *component*: rows that are identical, or share a group, or are linked through either (connected components, by
union–find). A component never lies in two splits, so nothing that is tested on has been trained on. Components are visited
in the order of a hash of (seed, id): the result depends on what the rows are, not on where they stand in a file. Each class
has a quota per split (largest remainders, so that totals are right), and a component goes where it brings the counts closer
to their quotas; training takes the rest, and always keeps some of every class.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from frostline.data.raw import SetAside
from frostline.errors import DataError

_HELD = ("test", "validation")


def split_rows(
    ids: Sequence[str],
    labels: Sequence[Hashable],
    groups: Sequence[str | None] | None,
    given: Sequence[str | None] | None,
    val: float,
    test_share: float,
    seed: int,
) -> list[str]:
    """The split of each row.

    ``labels`` are the strata. ``given`` names of splits are kept; rows without one, or given as training, are the pool that
    a missing validation split is carved out of, and a missing test split too if no validation split was given either.
    ``val`` and ``test_share`` are shares of that pool. Raises DataError where the shares leave nothing to train on.
    """
    _check_shares(val, test_share)
    given = given or [None] * len(ids)
    held = {name for name in given if name in _HELD}
    shares = {
        "test": test_share if not held else 0.0,
        "validation": val if "validation" not in held else 0.0,
    }
    pool = [row for row, name in enumerate(given) if name not in _HELD]
    result = [name if name in _HELD else "train" for name in given]
    components = _components([ids[row] for row in pool], [groups[row] for row in pool] if groups else None)
    chosen = _Division.of([[pool[i] for i in rows] for rows in components], ids, labels, shares, seed).divide()
    for name, rows in chosen.items():
        for row in rows:
            result[row] = name
    return result


def leaking_rows(ids: Sequence[str], groups: Sequence[str | None] | None, given: Sequence[str | None] | None) -> list[int]:
    """Rows of given splits to set aside because they (or their group) also stand in a held-out split: the held-out rows stay.

    Of validation and test, the test split keeps its rows.
    """
    if not given or not any(name in _HELD for name in given):
        return []
    leaking = []
    for rows in _components(ids, groups):
        keeps = next((name for name in _HELD if any(given[row] == name for row in rows)), None)
        leaking += [row for row in rows if keeps and given[row] != keeps]
    return sorted(leaking)


def refuse_lost(origins: Sequence[str], before: Sequence[str | None], after: Iterable[str | None], aside: Sequence[SetAside]) -> None:
    """Raise DataError for a given split of which no row is left: another would be carved out of the training rows in its place.

    ``origins`` and ``before``: all rows' places and given splits; ``after``: the given splits of the rows that are left.
    """
    left = {None, *after}
    lost = next((name for name in before if name not in left), None)
    if lost is None:
        return
    rows = {origin for origin, name in zip(origins, before, strict=True) if name == lost}
    why = next((f" (the first set aside: {row.origin}: {row.reason})" for row in aside if row.origin in rows), "")
    raise DataError(f"no row of the {lost} split can be used{why}, expected at least one. Mend its rows, or leave that split out")


def limit_rows(ids: Sequence[str], strata: Sequence[Hashable], limit: int, seed: int) -> list[int]:
    """``limit`` rows in their old order, chosen by the seed, each stratum in proportion (and not empty, if the limit allows)."""
    if limit < 1:
        raise DataError(f"data.limit got {limit!r}, expected at least 1, or nothing for all rows")
    if limit >= len(ids):
        return list(range(len(ids)))
    by_stratum: dict[Hashable, list[int]] = defaultdict(list)
    for row, stratum in enumerate(strata):
        by_stratum[stratum].append(row)
    counts = {stratum: len(rows) for stratum, rows in by_stratum.items()}
    order = sorted(counts, key=lambda stratum: (-counts[stratum], str(stratum)))
    ideal = {stratum: limit * counts[stratum] / len(ids) for stratum in order}
    quotas = _apportion(ideal, dict.fromkeys(counts, int(limit >= len(counts))), counts)
    chosen: list[int] = []
    for stratum, rows in by_stratum.items():
        chosen += sorted(rows, key=lambda row: (_rank(seed, "limit", ids[row]), row))[: quotas[stratum]]
    return sorted(chosen)


def _check_shares(val: float, test_share: float) -> None:
    for key, share in (("data.val", val), ("data.test_share", test_share)):
        if not 0 <= share < 1:
            raise DataError(f"{key} got {share!r}, expected a share from 0 to below 1, such as 0.1")
    if val + test_share >= 1:
        raise DataError(
            f"data.val={val!r} and data.test_share={test_share!r} leave no rows to train on, expected a sum below 1. Lower one of them"
        )


def _rank(seed: int, purpose: str, row_id: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{purpose}/{row_id}".encode(), digest_size=16).digest()


def _components(ids: Sequence[str], groups: Sequence[str | None] | None) -> list[list[int]]:
    """Positions that share an id or a group, directly or through others."""
    parent = list(range(len(ids)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for keys in (ids, groups or ()):
        first: dict[str, int] = {}
        for row, key in enumerate(keys):
            if key is not None:
                parent[root(row)] = root(first.setdefault(key, row))
    found: dict[int, list[int]] = defaultdict(list)
    for row in range(len(ids)):
        found[root(row)].append(row)
    return list(found.values())


def _apportion(ideal: Mapping[Hashable, float], least: Mapping[Hashable, int], most: Mapping[Hashable, int]) -> dict[Hashable, int]:
    """Whole numbers close to ``ideal`` and within bounds, with the same sum (rounded) if the bounds allow it.

    Largest remainders: from the ideals rounded down, seats are added one by one where most is lacking (or taken where there
    is most too much); of equals the first in ``ideal`` comes first.
    """
    names = list(ideal)
    seats = [min(max(math.floor(ideal[name]), least[name]), most[name]) for name in names]
    difference = round(sum(ideal.values())) - sum(seats)
    step = 1 if difference > 0 else -1
    bound = [(most if step > 0 else least)[name] for name in names]
    surplus = [(round(step * (seats[i] - ideal[name]), 9), i) for i, name in enumerate(names) if seats[i] != bound[i]]
    heapq.heapify(surplus)
    while difference and surplus:
        much, i = heapq.heappop(surplus)
        seats[i] += step
        difference -= step
        if seats[i] != bound[i]:
            heapq.heappush(surplus, (much + 1, i))
    return dict(zip(names, seats, strict=True))


def _quotas(counts: Mapping[Hashable, int], shares: Mapping[str, float]) -> dict[str, dict[Hashable, int]]:
    """Split → label → rows, for the splits with a share above zero; training keeps one of every label.

    A label that has a row for every split gets at least one in each. Where two labels have an equal claim to a row, it goes
    to the one that came off worse in the split before.
    """
    wanted = [name for name, share in shares.items() if share > 0 and counts]
    enough = {label: count > len(wanted) for label, count in counts.items()}
    free = {label: count - 1 for label, count in counts.items()}
    owed: dict[Hashable, float] = dict.fromkeys(counts, 0.0)
    quotas: dict[str, dict[Hashable, int]] = {}
    for later, name in zip(reversed(range(len(wanted))), wanted, strict=True):
        total = max(1, round(shares[name] * sum(counts.values())))
        order = sorted(counts, key=lambda label: (-round(owed[label], 6), -counts[label], str(label)))
        ideal = {label: total * counts[label] / sum(counts.values()) for label in order}
        least = {label: int(enough[label]) for label in counts}
        most = {label: max(0, free[label] - later * enough[label]) for label in counts}
        quotas[name] = _apportion(ideal, least, most)
        for label, seats in quotas[name].items():
            free[label] -= seats
            owed[label] += ideal[label] - seats
    return quotas


@dataclass
class _Division:
    """Components on their way into splits."""

    components: list[list[int]]
    """Rows of each, in the order in which they are placed."""
    strata: list[Counter[Hashable]]
    """Rows per label, of each component."""
    missing: dict[str, dict[Hashable, int]]
    """Split → label → how many rows are still to come; negative where a component overshot."""
    left: Counter[Hashable]
    """Label → rows that are still in training."""
    placed: dict[int, str] = field(default_factory=dict)
    """Component → held-out split."""

    @classmethod
    def of(
        cls, components: list[list[int]], ids: Sequence[str], labels: Sequence[Hashable], shares: dict[str, float], seed: int
    ) -> _Division:
        components = sorted(components, key=lambda rows: _rank(seed, "split", min(ids[row] for row in rows)))
        strata = [Counter(labels[row] for row in rows) for rows in components]
        left: Counter[Hashable] = Counter()
        for stratum in strata:
            left.update(stratum)
        return cls(components, strata, _quotas(left, shares), left)

    def divide(self) -> dict[str, list[int]]:
        for number in range(len(self.components)):
            gains = {name: self._gain(number, name) for name in self.missing}
            best = max(gains, key=lambda name: gains[name], default=None)  # of equals the first: the test split
            if best is not None and gains[best] > 0 and self._spares(number):
                self._place(number, best)
        self._fill_empty()
        chosen: dict[str, list[int]] = {name: [] for name in self.missing}
        for number, name in self.placed.items():
            chosen[name] += self.components[number]
        return chosen

    def _gain(self, number: int, name: str) -> int:
        """By how many rows the split's counts come closer to their quotas."""
        missing = self.missing[name]
        return sum(abs(missing[label]) - abs(missing[label] - count) for label, count in self.strata[number].items())

    def _spares(self, number: int) -> bool:
        return all(self.left[label] > count for label, count in self.strata[number].items())

    def _place(self, number: int, name: str) -> None:
        self.placed[number] = name
        self.left.subtract(self.strata[number])
        for label, count in self.strata[number].items():
            self.missing[name][label] -= count

    def _fill_empty(self) -> None:
        """A label that only comes in large components may have got nothing: its smallest one goes out, if training keeps another."""
        for name in self.missing:
            present = {label for number, placed in self.placed.items() if placed == name for label in self.strata[number]}
            for label in sorted((label for label, count in self.missing[name].items() if count > 0 and label not in present), key=str):
                fitting = [n for n, stratum in enumerate(self.strata) if label in stratum and n not in self.placed and self._spares(n)]
                if fitting:
                    self._place(min(fitting, key=lambda n: (len(self.components[n]), n)), name)
