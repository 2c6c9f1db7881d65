"""Net: what every text network (and our image Transformer) from zero takes, so that no builder has a dozen arguments."""

from __future__ import annotations

from dataclasses import dataclass, fields

from frostline.errors import ModelError


def check_size(name: str, value: int, least: int) -> None:
    """Raises ModelError unless ``model.name`` is a whole number from ``least`` on."""
    if not isinstance(value, int) or value < least:
        raise ModelError(f"model.{name} got {value!r}, expected a whole number from {least} on, as in model.{name}={max(least, 2)}")


@dataclass(frozen=True, kw_only=True)
class Net:
    """The size of a network from zero and what it ends in; plain values, so that a card holds them as they are."""

    outputs: int
    width: int = 256
    """Units of a hidden layer."""
    depth: int = 2
    """Hidden layers or blocks."""
    dropout: float = 0.1
    head: tuple[str, ...] = ()
    """Layers before the final linear one."""
    pool: str | None = None
    """How positions become one vector; the network's own way when not given."""

    def __post_init__(self) -> None:
        for name, least in (("outputs", 1), ("width", 2), ("depth", 1)):
            check_size(name, getattr(self, name), least)
        if not 0 <= self.dropout < 1:
            raise ModelError(f"model.dropout got {self.dropout!r}, expected a share from 0 to below 1, as in model.dropout=0.1")

    def to_dict(self) -> dict[str, object]:
        return {f.name: list(value) if isinstance(value := getattr(self, f.name), tuple) else value for f in fields(self)}
