"""Compiled CPU code (Numba): one epoch of a chain of layers, one model after the other.

Every layer is the same sum over tables of addresses, C[r_i] = beta C[r_i] + sum_j A[p_i + q_j]
B[s_j], whose rows C and B are whole vectors: a linear layer is a convolution whose window is its
whole input, and a convolution needs no copy of its windows. Rows of a window address A forward,
the window's places are summed over; for the weights' gradient p and q change places.
`attribution.training.network` writes the tables; `product_reference` there is the slow truth.

A model takes all steps of an epoch before the next one starts, so that its parameters, velocity
and activations stay in the second-level cache. All code is one module, for Numba's cache on disk
does not notice a change in another file. The functions release the interpreter lock.
"""

import math
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import binding, ir  # what Numba compiles with
from numba.core import cgutils, types
from numba.extending import intrinsic

_FEATURES = binding.get_host_cpu_features()
_WIDE = _FEATURES.get("avx512f", False)
VECTOR_BYTES = 64 if _WIDE else 32 if _FEATURES.get("avx2", False) else 16
# (rows, vectors) of a tile that stays in registers: 32 of them, but 16 with AVX2.
TALL, MIDDLE, BROAD = (10, 1), (5 if VECTOR_BYTES == 32 else 7, 2), (5, 4)
BROADEST = 2 if VECTOR_BYTES == 32 else 4
# Lines of B that are summed in one go; they stay in the cache while all tiles read them.
BLOCK = 1024

# Numba looks at the sign of every other index; with it no loop over a row is vectorized.
_at = np.uint64

NO_ACTIVATION, RELU, TANH = 0, 1, 2
SGD, ADAMW = 0, 1

STAGE = np.dtype(
    [
        (name, np.int64)
        for name in (
            # Forward: `places` rows of `wide` numbers an example, each a sum over `n_taps`.
            *("places", "n_taps", "outputs", "wide", "weight", "bias", "activation"),
            *("in_rows", "taps", "lines", "out_rows", "delta_rows"),
            # Pooling of what comes out, where `pooled` > 0 places remain: maxima, or means.
            *("pooled", "averaged", "window", "pool_out", "pool_delta", "next_rows", "winners"),
            # Backward to the input: the turned weights, [n_back, line], and the sums over them.
            *("turned", "turned_rows", "line", "in_wide", "back_places", "n_back"),
            *("back_rows", "back_taps", "back_lines", "grad", "grad_rows"),
        )
    ]
)


class Data(NamedTuple):
    """All examples, one after the other; labels [n] or numbers [n], the other is empty."""

    examples: npt.NDArray[np.floating]
    size: int
    labels: npt.NDArray[np.int64]
    numbers: npt.NDArray[np.floating]


class Stacks(NamedTuple):
    """[M, p] each, or [0, 0] where the rule has none.

    The accumulator holds gradients, or the heavy ball's velocity; ``first`` is Nesterov's velocity
    or adamw's first moment, ``second`` its second.
    """

    params: npt.NDArray[np.floating]
    accumulator: npt.NDArray[np.floating]
    first: npt.NDArray[np.floating]
    second: npt.NDArray[np.floating]


class Room(NamedTuple):
    """What one batch of one model needs between the layers.

    ``winners`` (int8) says which place of a pooling window was the largest, ``first_rows`` (int64)
    where the first stage's windows start in the examples.
    """

    numbers: npt.NDArray[np.floating]
    winners: npt.NDArray[np.int8]
    first_rows: npt.NDArray[np.int64]


class Rule(NamedTuple):
    """The optimizer: which, and its numbers; all but the betas in the type of the parameters."""

    kind: int
    nesterov: bool
    keep: np.floating
    momentum: np.floating
    decay: np.floating
    eps: np.floating
    beta1: float
    beta2: float


def _tile(n_rows: int, n_vectors: int):  # type: ignore[no-untyped-def]
    """An intrinsic that sums one tile of C, [n_rows, n_vectors], in registers.

    LLVM does not keep an array of Numba's in registers; written out, the sums run at the peak of
    the vector units. Rows beyond the last repeat the last: they are read before any is written.
    """

    @intrinsic
    def tile(_context, a, p, row, rows, q, b, s, start, stop, c, r, column, beta):  # type: ignore[no-untyped-def]
        signature = types.void(a, p, row, rows, q, b, s, start, stop, c, r, column, beta)

        def generate(target, builder, signature, arguments):  # type: ignore[no-untyped-def]
            def pointer(place):  # type: ignore[no-untyped-def]
                make = target.make_array(signature.args[place])
                return make(target, builder, arguments[place]).data

            a, p, q, b, s, c, r = (pointer(place) for place in (0, 1, 4, 5, 6, 9, 10))
            row, rows, start, stop, column, beta = (arguments[k] for k in (2, 3, 7, 8, 11, 12))
            number = target.get_value_type(signature.args[0].dtype)
            bits = 32 if number == ir.FloatType() else 64
            lanes = 8 * VECTOR_BYTES // bits
            vector = ir.VectorType(number, lanes)
            whole, half = ir.IntType(64), ir.IntType(32)
            fma = cgutils.get_or_insert_function(
                builder.module,
                ir.FunctionType(vector, [vector] * 3),
                f"llvm.fma.v{lanes}f{bits}",
            )

            def at(base, index):  # type: ignore[no-untyped-def]
                return builder.gep(base, [index])

            def vectors(base):  # type: ignore[no-untyped-def]
                places = (at(base, whole(k * lanes)) for k in range(n_vectors))
                return [builder.bitcast(place, vector.as_pointer()) for place in places]

            def spread(value):  # type: ignore[no-untyped-def]
                blank = vector(ir.Undefined)
                first = builder.insert_element(blank, value, half(0))
                return builder.shuffle_vector(first, blank, ir.VectorType(half, lanes)([0] * lanes))

            align = bits // 8
            last = builder.sub(rows, whole(1))
            sources, sinks = [], []
            for k in range(n_rows):
                place = builder.add(row, whole(k))
                place = builder.select(builder.icmp_signed("<", place, last), place, last)
                sources.append(at(a, builder.load(at(p, place))))
                sinks += vectors(at(c, builder.add(builder.load(at(r, place)), column)))
            zero = vector([0.0] * lanes)
            sums = [cgutils.alloca_once_value(builder, zero) for _ in sinks]
            with cgutils.for_range_slice(builder, start, stop, whole(1)) as (step, _):
                offset = builder.load(at(q, step))
                line = at(b, builder.add(builder.load(at(s, step)), column))
                factors = [builder.load(place, align=align) for place in vectors(line)]
                for k, source in enumerate(sources):
                    value = spread(builder.load(at(source, offset)))
                    for v, factor in enumerate(factors):
                        total = sums[k * n_vectors + v]
                        more = builder.call(fma, [value, factor, builder.load(total)])
                        builder.store(more, total)
            overwrite = builder.fcmp_ordered("==", beta, number(0.0))
            with builder.if_else(overwrite) as (alone, added):
                with alone:
                    for sink, total in zip(sinks, sums, strict=True):
                        builder.store(builder.load(total), sink, align=align)
                with added:
                    factor = spread(beta)
                    olds = [builder.load(sink, align=align) for sink in sinks]
                    news = [
                        builder.call(fma, [factor, old, builder.load(total)])
                        for old, total in zip(olds, sums, strict=True)
                    ]
                    for sink, new in zip(sinks, news, strict=True):
                        builder.store(new, sink, align=align)
            return target.get_dummy_value()

        return signature, generate

    return tile


_tall, _middle, _broad = _tile(*TALL), _tile(*MIDDLE), _tile(*BROAD)


@numba.njit(nogil=True, cache=True)
def product(a, p, q, b, s, c, r, wide, beta):  # type: ignore[no-untyped-def]
    """C[r_i + v] = beta C[r_i + v] + sum_j A[p_i + q_j] B[s_j + v], 0 <= v < wide, in place.

    Args:
        a: 1-D numbers, as are `b` and `c`, of one type.
        p: int64 addresses, as are `q`, `s` and `r`.
        q: As many as `s`.
        b: Like `a`; it may share an array with `c` but no line.
        s: Addresses in `b`.
        c: The sums.
        r: As many as `p`.
        wide: Numbers in a row, a multiple of what a vector holds.
        beta: Of the type of `c`; 0 overwrites what is in `c`.
    """
    lanes, rows, keep = VECTOR_BYTES // c.itemsize, len(p), beta
    for start in range(0, len(q), BLOCK):
        stop = min(start + BLOCK, len(q))
        column = 0
        while column < wide:
            left = (wide - column) // lanes
            if left >= 4 and BROADEST == 4:
                for row in range(0, rows, BROAD[0]):
                    _broad(a, p, row, rows, q, b, s, start, stop, c, r, column, keep)
                column += 4 * lanes
            elif left >= 2:
                for row in range(0, rows, MIDDLE[0]):
                    _middle(a, p, row, rows, q, b, s, start, stop, c, r, column, keep)
                column += 2 * lanes
            else:
                for row in range(0, rows, TALL[0]):
                    _tall(a, p, row, rows, q, b, s, start, stop, c, r, column, keep)
                column += lanes
        keep = c.dtype.type(1)


@numba.njit(nogil=True)
def _activate(room, rows, wide, activation):  # type: ignore[no-untyped-def]
    zero = room.dtype.type(0)
    if activation == RELU:
        for row in rows:
            for k in range(row, row + wide):
                # NaN stays NaN, as in Torch.
                room[_at(k)] = zero if room[_at(k)] < zero else room[_at(k)]
    elif activation == TANH:
        for row in rows:
            for k in range(row, row + wide):
                room[_at(k)] = math.tanh(room[_at(k)])


@numba.njit(nogil=True)
def _pool(stage, tables, n, room, winners):  # type: ignore[no-untyped-def]
    """Largest of each window, written where the next stage reads; which one is kept."""
    window, wide = stage.window, stage.wide
    pool_out, next_rows, won = stage.pool_out, stage.next_rows, stage.winners
    for place in range(n * stage.pooled):
        found, into = tables[pool_out], tables[next_rows + place]
        for k in range(wide):
            room[_at(into + k)] = room[_at(found + k)]
            winners[_at(won + k)] = 0
        for rival in range(1, window):
            found = tables[pool_out + rival]
            for k in range(wide):
                old, new, number = room[_at(into + k)], room[_at(found + k)], winners[_at(won + k)]
                room[_at(into + k)] = new if new > old else old
                winners[_at(won + k)] = rival if new > old else number
        pool_out += window
        won += wide


@numba.njit(nogil=True)
def _unpool(stage, tables, n, grad, room, winners):  # type: ignore[no-untyped-def]
    """Send the derivative by each pooled number to the place that won."""
    window, wide, zero = stage.window, stage.wide, room.dtype.type(0)
    pool_delta, won, source = stage.pool_delta, stage.winners, grad
    for _ in range(n * stage.pooled):
        for rival in range(window):
            into = tables[pool_delta + rival]
            for k in range(wide):
                value, number = room[_at(source + k)], winners[_at(won + k)]
                room[_at(into + k)] = value if number == rival else zero
        pool_delta += window
        won += wide
        source += wide


@numba.njit(nogil=True)
def _average(stage, tables, n, room):  # type: ignore[no-untyped-def]
    """Mean of each window, written where the next stage reads."""
    window, wide, share = stage.window, stage.wide, room.dtype.type(1 / stage.window)
    pool_out = stage.pool_out
    for into in tables[stage.next_rows : stage.next_rows + n * stage.pooled]:
        for k in range(wide):
            room[_at(into + k)] = 0
        for found in tables[pool_out : pool_out + window]:
            for k in range(wide):
                room[_at(into + k)] += share * room[_at(found + k)]
        pool_out += window


@numba.njit(nogil=True)
def _spread(stage, tables, n, grad, room):  # type: ignore[no-untyped-def]
    """Send each mean's share of the derivative to all places of its window."""
    window, wide, share = stage.window, stage.wide, room.dtype.type(1 / stage.window)
    pool_delta, source = stage.pool_delta, grad
    for _ in range(n * stage.pooled):
        for into in tables[pool_delta : pool_delta + window]:
            for k in range(wide):
                room[_at(into + k)] = share * room[_at(source + k)]
        pool_delta += window
        source += wide


@numba.njit(nogil=True)
def _copy(stage, tables, n, grad, room):  # type: ignore[no-untyped-def]
    wide, source = stage.wide, grad
    for into in tables[stage.delta_rows : stage.delta_rows + n * stage.places]:
        for k in range(wide):
            room[_at(into + k)] = room[_at(source + k)]
        source += wide


@numba.njit(nogil=True)
def _deactivate(stage, tables, n, room):  # type: ignore[no-untyped-def]
    """Multiply the derivative by each output with the activation's slope there."""
    zero, one = room.dtype.type(0), room.dtype.type(1)
    wide, out_rows, delta_rows = stage.wide, stage.out_rows, stage.delta_rows
    if stage.activation == RELU:
        for place in range(n * stage.places):
            into, after = tables[delta_rows + place], tables[out_rows + place]
            for k in range(wide):
                value, output = room[_at(into + k)], room[_at(after + k)]
                room[_at(into + k)] = value if output > zero else zero
    elif stage.activation == TANH:
        for place in range(n * stage.places):
            into, after = tables[delta_rows + place], tables[out_rows + place]
            for k in range(wide):
                room[_at(into + k)] *= one - room[_at(after + k)] * room[_at(after + k)]


@numba.njit(nogil=True)
def _fill_rows(numbers, rows, values, wide):  # type: ignore[no-untyped-def]
    for row in rows:
        for k in range(wide):
            numbers[_at(row + k)] = values[_at(k)]


@numba.njit(nogil=True)
def _add_rows(numbers, rows, into, wide):  # type: ignore[no-untyped-def]
    for row in rows:
        for k in range(wide):
            into[_at(k)] += numbers[_at(row + k)]


@numba.njit(nogil=True)
def _source(stage, tables, data, n_rows, room, place):  # type: ignore[no-untyped-def]
    """What a stage reads, and where its windows start."""
    if place == 0:
        return data.examples, room.first_rows[:n_rows]
    return room.numbers, tables[stage.in_rows : stage.in_rows + n_rows]


@numba.njit(nogil=True)
def _forward(stages, tables, data, n, params, room):  # type: ignore[no-untyped-def]
    numbers = room.numbers
    zero, one = numbers.dtype.type(0), numbers.dtype.type(1)
    for place in range(len(stages)):
        stage = stages[place]
        n_rows, wide = n * stage.places, stage.wide
        source, rows = _source(stage, tables, data, n_rows, room, place)
        into = tables[stage.out_rows : stage.out_rows + n_rows]
        taps = tables[stage.taps : stage.taps + stage.n_taps]
        lines = tables[stage.lines : stage.lines + stage.n_taps]
        keep = zero
        if stage.bias >= 0:
            keep = one
            _fill_rows(numbers, into, params[stage.bias : stage.bias + wide], wide)
        weight = params[stage.weight : stage.weight + stage.n_taps * wide]
        product(source, rows, taps, weight, lines, numbers, into, wide, keep)
        _activate(numbers, into, wide, stage.activation)
        if stage.averaged:
            _average(stage, tables, n, numbers)
        elif stage.pooled:
            _pool(stage, tables, n, numbers, room.winners)


@numba.njit(nogil=True)
def _backward(stages, tables, data, n, params, gradient, keep, room):  # type: ignore[no-untyped-def]
    numbers = room.numbers
    for place in range(len(stages) - 1, -1, -1):
        stage = stages[place]
        n_rows, wide = n * stage.places, stage.wide
        source, rows = _source(stage, tables, data, n_rows, room, place)
        deltas = tables[stage.delta_rows : stage.delta_rows + n_rows]
        taps = tables[stage.taps : stage.taps + stage.n_taps]
        lines = tables[stage.lines : stage.lines + stage.n_taps]
        sums = gradient[stage.weight : stage.weight + stage.n_taps * wide]
        product(source, taps, rows, numbers, deltas, sums, lines, wide, keep)
        if stage.bias >= 0:
            sums = gradient[stage.bias : stage.bias + wide]
            for k in range(wide):
                sums[k] *= keep
            _add_rows(numbers, deltas, sums, wide)
        if place:
            _to_input(stage, tables, n, params, numbers)
            below = stages[place - 1]
            if below.averaged:
                _spread(below, tables, n, stage.grad, numbers)
            elif below.pooled:
                _unpool(below, tables, n, stage.grad, numbers, room.winners)
            else:
                _copy(below, tables, n, stage.grad, numbers)
            _deactivate(below, tables, n, numbers)


@numba.njit(nogil=True)
def _to_input(stage, tables, n, params, numbers):  # type: ignore[no-untyped-def]
    """The derivative by the stage's input."""
    wide, line, outputs = stage.wide, stage.line, stage.outputs
    source = stage.weight
    for offset in tables[stage.turned_rows : stage.turned_rows + stage.n_taps]:
        into = stage.turned + offset
        for k in range(outputs):
            numbers[_at(into)] = params[_at(source + k)]
            into += line
        source += wide
    n_rows = n * stage.back_places
    rows = tables[stage.back_rows : stage.back_rows + n_rows]
    taps = tables[stage.back_taps : stage.back_taps + stage.n_back]
    lines = tables[stage.back_lines : stage.back_lines + stage.n_back]
    into = tables[stage.grad_rows : stage.grad_rows + n_rows]
    zero = numbers.dtype.type(0)
    product(numbers, rows, taps, numbers, lines, numbers, into, stage.in_wide, zero)


@numba.njit(nogil=True)
def _head(stage, tables, data, examples, numbers):  # type: ignore[no-untyped-def]
    """Summed loss; leaves the derivative of its mean by the last stage's outputs."""
    total, scale = 0.0, numbers.dtype.type(1 / len(examples))
    for place, example in enumerate(examples):
        out = tables[stage.out_rows + place]
        delta = tables[stage.delta_rows + place]
        if len(data.numbers):
            miss = numbers[out] - data.numbers[example]
            total += miss * miss
            numbers[delta] = 2 * miss * scale
            continue
        largest = numbers[out]
        for k in range(1, stage.outputs):
            largest = max(largest, numbers[_at(out + k)])
        mass = numbers.dtype.type(0)
        for k in range(stage.outputs):
            numbers[_at(delta + k)] = math.exp(numbers[_at(out + k)] - largest)
            mass += numbers[_at(delta + k)]
        for k in range(stage.outputs):
            numbers[_at(delta + k)] *= scale / mass
        label = data.labels[example]
        total += math.log(mass) + largest - numbers[out + label]
        numbers[delta + label] -= scale
    return total


@numba.njit(nogil=True)
def _move(rule, rate, step, params, gradient, first, second):  # type: ignore[no-untyped-def]
    """One step of the optimizer, as `attribution.training.optimizers` takes it."""
    if rule.kind == SGD and not rule.nesterov:
        for k in range(len(params)):
            gradient[k] += rule.decay * params[k]
            params[k] -= rate * gradient[k]
    elif rule.kind == SGD:
        for k in range(len(params)):
            slope = gradient[k] + rule.decay * params[k]
            first[k] = rule.momentum * first[k] + slope
            params[k] -= rate * (slope + rule.momentum * first[k])
    else:
        number = params.dtype.type
        move = number(rate / (1.0 - rule.beta1 ** (step + 1.0)))
        root = number(1.0 / math.sqrt(1.0 - rule.beta2 ** (step + 1.0)))
        new1, stay2 = number(1.0 - rule.beta1), number(rule.beta2)
        new2, keep = number(1.0 - rule.beta2), number(1.0 - rate * rule.decay)
        for k in range(len(params)):
            first[k] += new1 * (gradient[k] - first[k])
            second[k] = stay2 * second[k] + new2 * gradient[k] * gradient[k]
            scale = math.sqrt(second[k]) * root + rule.eps
            params[k] = keep * params[k] - move * first[k] / scale


@numba.njit(nogil=True)
def _first_rows(stage, tables, data, examples, rows):  # type: ignore[no-untyped-def]
    for k, example in enumerate(examples):
        for place in range(stage.places):
            offset = tables[stage.in_rows + place]
            rows[k * stage.places + place] = example * data.size + offset


@numba.njit(nogil=True, cache=True)
def train_epoch(  # type: ignore[no-untyped-def]
    stages, tables, data, order, sizes, batch_size, rule, rates, first_steps, stacks, room, losses
):
    """Every model's pass over its own rows, in place.

    Args:
        stages: Records of `STAGE`.
        tables: int64, the addresses that the stages name.
        data: `Data`.
        order: int64 [M, largest subset], rows in the order of this epoch.
        sizes: int64 [M].
        batch_size: Rows of a step.
        rule: The optimizer's `Rule`.
        rates: [M, steps], the learning rates.
        first_steps: int64 [M], steps taken before.
        stacks: `Stacks`.
        room: `Room`, zero when it is first used.
        losses: float64 [M], filled with each model's summed loss.
    """
    for model in range(len(sizes)):
        params, gradient = stacks.params[model], stacks.accumulator[model]
        first = stacks.first[model] if len(stacks.first) else params
        second = stacks.second[model] if len(stacks.second) else params
        total = 0.0
        for step in range(-(-sizes[model] // batch_size)):
            start = step * batch_size
            examples = order[model, start : min(start + batch_size, sizes[model])]
            n = len(examples)
            _first_rows(stages[0], tables, data, examples, room.first_rows)
            _forward(stages, tables, data, n, params, room)
            total += _head(stages[-1], tables, data, examples, room.numbers)
            _backward(stages, tables, data, n, params, gradient, rule.keep, room)
            moment = first_steps[model] + step
            _move(rule, rates[model, step], moment, params, gradient, first, second)
        losses[model] = total
