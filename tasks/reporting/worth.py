"""What one run said sources, or rows, are worth, as frozen records."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Player:
    """One source, or one row, and what it is worth; > 0 makes the model better."""

    name: str
    n_rows: int
    value: float
    standard_error: float


@dataclass(frozen=True, kw_only=True)
class Valuation:
    """A problem of kind value; players fall by value."""

    valuation_id: str
    problem: str
    method: str
    sources: str | None
    output: str
    targets: str
    retrainings: int
    nothing: float
    everything: float
    converged: bool
    sentence: str
    players: tuple[Player, ...]

    def share(self, player: Player) -> float | None:
        """Of what all add together; None where together they add nothing."""
        gained = self.everything - self.nothing
        return player.value / gained if gained > 0 else None


def valuations_of(
    rows: Iterable[Mapping[str, Any]], players: Iterable[Mapping[str, Any]]
) -> tuple[Valuation, ...]:
    """Records from rows of `valuations` and of `player_values`, which fall by value."""
    found: dict[str, list[Player]] = {}
    for row in players:
        fields = ("n_rows", "value", "standard_error")
        player = Player(name=row["player"], **{field: row[field] for field in fields})
        found.setdefault(row["valuation_id"], []).append(player)
    return tuple(
        Valuation(**row, players=tuple(found.get(row["valuation_id"], ()))) for row in rows
    )
