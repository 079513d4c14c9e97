"""The linear relaxation of a programme, by HiGHS on the candidates that prices leave undecided.

Small programmes are solved whole. For large ones prices are first guessed from a systematic sample
of the candidates; all but those nearest to indifference are then decided by the sign of their
margin, the rest is solved exactly, and candidates that the new prices decide otherwise are added,
until the value meets the Lagrange bound over all candidates (sifting, Bixby et al. 1992).

Constraints are elastic: missing one costs more than any utility, so that what cannot be satisfied
shows as slack instead of a failure.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from attribution.streams import Purpose, stream
from optimize.problem import BoolArray, Float64
from optimize.selection.programme import Indices, Programme
from schemas.errors import WinnowError

# Candidates up to which the programme is solved whole, and of those left undecided above.
WHOLE, UNDECIDED = 30_000, 30_000
_SAMPLE = 25_000
# Of every kind of candidate, however rare, so many are sampled and left undecided.
_FEW = 20
# Value and bound agree when they differ by less than this, relative to the sum of magnitudes.
_AGREE = 1e-9
# Utilities that tie are told apart by this much of their mean magnitude, lower rows first: ties of
# many rows, as sparse effects have them, would leave nothing decided.
_TIE = 1e-5
_PENALTY = 1e4
_SLACK = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Relaxed:
    """The optimum of the relaxation.

    Attributes:
        x: Float64 [n], in [0, 1].
        prices: Float64 [K], what one more unit of each limit is worth.
        weights: Float64 [J], how much each piece decides, of sum 1.
        bound: The Lagrange bound at these prices.
        value: What x scores.
        slack: How far x is from satisfying the constraints; 0 where it does.
    """

    x: Float64
    prices: Float64
    weights: Float64
    bound: float
    value: float
    slack: float


def relax(programme: Programme, start: Relaxed | None = None) -> Relaxed:
    """Solve the relaxation; prices that are nearly right save work.

    Args:
        programme: The programme.
        start: The optimum of a programme with the same constraints and the first of its pieces.
    """
    scaled = _Scaled.of(programme)
    if programme.n <= WHOLE:
        everything = np.arange(programme.n)
        return scaled.finish(scaled.solve(everything, np.zeros(programme.n, dtype=bool)))
    prices, weights = _sampled(scaled) if start is None else scaled.priced(start)
    return scaled.finish(_sift(scaled, prices, weights))


def _sift(scaled: "_Scaled", prices: Float64, weights: Float64) -> "_Optimum":
    inner, wanted = scaled.inner, UNDECIDED
    open_ = np.zeros(inner.n, dtype=bool)
    centre, least = np.zeros(inner.n), np.inf
    while True:
        margins = inner.margins(inner.reduced(prices, weights))
        bound = inner.bound(prices, weights)
        if bound < least:
            centre, least = margins, bound
            open_[:] = False
        else:  # worse prices only show what was decided too early
            open_ |= _first((margins > 0) != (centre > 0), -np.abs(margins), wanted)
            wanted = min(2 * wanted, inner.n)
        open_ |= _nearest(np.abs(centre), scaled.kinds, wanted)
        on = (centre > 0) & ~open_
        if inner.unit is not None:
            open_ |= on & np.isin(inner.unit, inner.unit[open_])
            on &= ~open_
        found = scaled.solve(np.flatnonzero(open_), on)
        prices, weights = found.prices, found.weights
        value = float((inner.gains @ found.x + inner.offsets).min())
        meets = inner.bound(prices, weights) - value <= _AGREE * scaled.magnitude
        if open_.all() or (meets and found.slack <= _SLACK):
            return found
        wanted = min(wanted + UNDECIDED // 4, inner.n)


def _first(among: BoolArray, order: Float64, wanted: int) -> BoolArray:
    """Those of some candidates that come first, not more than wanted."""
    found, places = np.zeros(len(among), dtype=bool), np.flatnonzero(among)
    if len(places) > wanted:
        places = places[np.argpartition(order[places], wanted)[:wanted]]
    found[places] = True
    return found


def _nearest(distance: Float64, kinds: Indices, wanted: int) -> BoolArray:
    """The candidates nearest to indifference, of all and of every kind."""
    found = _first(np.ones(len(distance), dtype=bool), distance, wanted)
    members = np.bincount(kinds)
    few = np.bincount(kinds[found], minlength=len(members)) < np.minimum(members, _FEW)
    rare = np.flatnonzero(few[kinds])
    order = rare[np.lexsort((distance[rare], kinds[rare]))]
    _, first, count = np.unique(kinds[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(first, count)
    found[order[rank < _FEW]] = True
    return found


def _sampled(scaled: "_Scaled") -> tuple[Float64, Float64]:
    """Prices of a sample: every k-th unit by utility of each kind, with k times its room."""
    inner = scaled.inner
    leaders = np.arange(inner.n)
    if inner.unit is not None:
        _, leaders = np.unique(inner.unit, return_index=True)
    _, kind, members = np.unique(scaled.kinds[leaders], return_inverse=True, return_counts=True)
    wanted = np.clip(members * _SAMPLE // len(leaders), np.minimum(members, _FEW), members)
    order = np.lexsort((inner.gains.mean(axis=0)[leaders], kind))
    rank = np.arange(len(order)) - (np.cumsum(members) - members)[kind[order]]
    of, among = wanted[kind[order]], members[kind[order]]
    picked = (rank + 1) * of // among > rank * of // among
    chosen, room = leaders[order[picked]], (among / of)[picked]
    if inner.unit is not None:
        rooms = np.zeros(int(inner.unit.max()) + 1)
        rooms[inner.unit[chosen]] = room
        chosen = np.flatnonzero(rooms[inner.unit])
        room = rooms[inner.unit[chosen]]
    found = scaled.solve(chosen, np.zeros(inner.n, dtype=bool), room)
    return found.prices, found.weights


class _Optimum(NamedTuple):
    """Of a scaled programme: x [n], prices [K], weights [J] and the sum of slack."""

    x: Float64
    prices: Float64
    weights: Float64
    slack: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scaled:
    """A programme in units in which HiGHS's absolute tolerances make sense.

    Attributes:
        programme: In its own units.
        inner: Utilities of mean magnitude 1, shifted where the size is fixed and told apart where
            they tie; constraints of mean coefficient 1.
        shift: What was taken off each utility.
        unit: What utilities were divided by.
        per: What constraints were divided by, [K].
        kinds: Int [n], alike where the same constraints are touched; empty where all is solved.
    """

    programme: Programme
    inner: Programme
    shift: float
    unit: float
    per: Float64
    kinds: Indices

    @classmethod
    def of(cls, programme: Programme) -> "_Scaled":
        """A programme scaled."""
        gains, shift, per = programme.gains, 0.0, programme.per
        if programme.n and programme.low[0] == programme.high[0]:
            shift = float(np.median(gains))
        moved = gains - shift
        unit = (float(np.abs(moved).mean()) if programme.n else 0.0) or 1.0
        moved /= unit
        kinds = np.zeros(0, dtype=np.intp)
        if programme.n > WHOLE:
            moved += _TIE * np.linspace(0.5, -0.5, programme.n)
            codes = stream(0, Purpose.SOLVER).integers(1 << 62, size=len(per))
            touched = (programme.columns != 0).astype(np.int64) @ codes
            kinds = np.unique(touched, return_inverse=True)[1]
        inner = replace(
            programme,
            gains=moved,
            # Of several pieces only the differences of their offsets matter.
            offsets=(programme.offsets - programme.offsets.mean()) / unit,
            columns=sparse.csr_array(programme.columns / per),
            low=programme.low / per,
            high=programme.high / per,
        )
        return cls(programme=programme, inner=inner, shift=shift, unit=unit, per=per, kinds=kinds)

    @property
    def magnitude(self) -> float:
        """What rounding errors are relative to, scaled."""
        return float(np.abs(self.inner.gains).sum() + np.abs(self.inner.offsets).max() + 1)

    def priced(self, start: Relaxed) -> tuple[Float64, Float64]:
        """Scaled prices from those of another optimum, which had the first of the pieces."""
        prices = start.prices.copy()
        prices[0] -= self.shift
        weights = np.pad(start.weights, (0, len(self.inner.gains) - len(start.weights)))
        return prices * self.per / self.unit, weights

    def solve(self, open_: Indices, on: BoolArray, room: Float64 | None = None) -> _Optimum:
        """The optimum with all but some candidates decided.

        Args:
            open_: Undecided candidates.
            on: Bool [n], those that are chosen.
            room: Float64 [len(open_)], how often each may be chosen, alike in a unit; 1 unless
                given.
        """
        inner = self.inner
        spent = on @ inner.columns
        model = _Model(
            gains=inner.gains[:, open_],
            offsets=inner.offsets + inner.gains @ on,
            columns=inner.columns[open_],
            low=inner.low - spent,
            high=inner.high - spent,
            unit=None if inner.unit is None else inner.unit[open_],
            room=np.ones(len(open_)) if room is None else room,
        )
        chosen, prices, weights, slack = model.solve()
        x = on.astype(np.float64)
        x[open_] = chosen
        return _Optimum(x, prices, weights, slack)

    def finish(self, found: _Optimum) -> Relaxed:
        """The optimum in the programme's own units."""
        programme = self.programme
        prices = found.prices * self.unit / self.per
        prices[0] += self.shift
        return Relaxed(
            x=found.x,
            prices=prices,
            weights=found.weights,
            bound=programme.bound(prices, found.weights),
            value=float((programme.gains @ found.x + programme.offsets).min()),
            slack=found.slack if found.slack > _SLACK else 0.0,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """What HiGHS is given: variables x [m], the least piece t, what is over and what is missing."""

    gains: Float64
    offsets: Float64
    columns: Any
    low: Float64
    high: Float64
    unit: Indices | None
    room: Float64

    def solve(self) -> tuple[Float64, Float64, Float64, float]:
        """Find x, prices, weights and the sum of slack."""
        m, k, pieces = self.gains.shape[1], len(self.low), len(self.gains)
        equal = self.low == self.high
        most, least = np.isfinite(self.high) & ~equal, np.isfinite(self.low) & ~equal
        above, below = self._elastic(k)
        blocks, limits = [above[most], -below[least]], [self.high[most], -self.low[least]]
        if pieces > 1:
            blocks.append(self._floor(k))
            limits.append(self.offsets)
        if self.unit is not None:
            shared, rooms = self._shared(self.unit, k)
            blocks.append(shared)
            limits.append(rooms)
        cost, bounds = self._variables(k)
        result = linprog(
            cost,
            A_ub=sparse.vstack(blocks, format="csc"),
            b_ub=np.concatenate(limits),
            A_eq=self._elastic(k, both=True)[0][equal] if equal.any() else None,
            b_eq=self.high[equal] if equal.any() else None,
            bounds=bounds,
            method="highs",
        )
        if result.x is None:
            raise WinnowError(f"HiGHS cannot solve the relaxation: {result.message}")
        ends = np.cumsum([most.sum(), least.sum(), pieces])
        most_duals, least_duals, floor = np.split(-result.ineqlin.marginals, ends)[:3]
        prices = np.zeros(k)
        prices[most] = np.maximum(most_duals, 0.0)
        prices[least] -= np.maximum(least_duals, 0.0)
        if equal.any():
            prices[equal] = -result.eqlin.marginals
        weights = (
            np.maximum(floor, 0.0) / np.maximum(floor, 0.0).sum() if pieces > 1 else np.ones(1)
        )
        return result.x[:m], prices, weights, float(result.x[m + 1 :].sum())

    def _elastic(self, k: int, *, both: bool = False) -> tuple[Any, Any]:
        """What the candidates take, less what is over; and with what is missing."""
        taken, eye = sparse.csr_array(self.columns.T), sparse.eye_array(k, format="csr")
        no, t = sparse.csr_array((k, k)), sparse.csr_array((k, 1))
        over = sparse.hstack([taken, t, -eye, eye if both else no], format="csr")
        return over, sparse.hstack([taken, t, no, eye], format="csr")

    def _variables(self, k: int) -> tuple[Float64, Float64]:
        """Costs and bounds of the x, t, what is over and what is missing."""
        m, several = self.gains.shape[1], len(self.gains) > 1
        worth = max(1.0, float(np.abs(self.gains).max(initial=0.0)))
        own = np.zeros(m) if several else -self.gains[0]
        cost = np.concatenate([own, [-1.0 * several], np.full(2 * k, _PENALTY * worth)])
        bounds = np.zeros((len(cost), 2))
        bounds[:m, 1], bounds[m + 1 :, 1] = self.room, np.inf
        bounds[m] = (-np.inf, np.inf) if several else (0, 0)
        return cost, bounds

    def _floor(self, k: int) -> Any:
        """Rows t - gains x, which the offsets limit."""
        pieces = len(self.gains)
        parts = [
            sparse.csr_array(-self.gains),
            sparse.csr_array(np.ones((pieces, 1))),
            sparse.csr_array((pieces, 2 * k)),
        ]
        return sparse.hstack(parts, format="csr")

    def _shared(self, unit: Indices, k: int) -> tuple[Any, Float64]:
        """One row for each unit of several candidates, and its room."""
        m = self.gains.shape[1]
        _, number, members = np.unique(unit, return_inverse=True, return_counts=True)
        own = np.flatnonzero(members[number] > 1)
        crowded, first, place = np.unique(number[own], return_index=True, return_inverse=True)
        entries = (np.ones(len(own)), (place, own))
        rows = sparse.csr_array(entries, shape=(len(crowded), m + 1 + 2 * k))
        return rows, self.room[own][first]
