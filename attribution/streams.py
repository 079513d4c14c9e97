"""Every random number of winnow, as a pure function of a key.

A stream is named by (seed, purpose, index, ...); two names never share a state, and no state is
carried from one call to the next. `philox4x32` is the counter-based generator whose bits define
the random projection on every device. There is no arithmetic on seeds: seed + 1 is another seed,
never the neighbour of a stream.
"""

import operator
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from schemas.errors import RequestError

SEED_LIMIT = 2**63


class Purpose(StrEnum):
    """What a stream is drawn for."""

    INIT = "init"
    ORDER = "order"
    SPLIT = "split"
    CORRUPT = "corrupt"
    MASKS = "masks"
    SEEDS = "seeds"
    PROJECTION = "projection"
    BOOTSTRAP = "bootstrap"
    ARMS = "arms"
    CALIBRATION = "calibration"
    LABELS = "labels"
    SOLVER = "solver"
    POISON = "poison"
    VERDICT = "verdict"
    REMOVAL = "removal"
    FOLDS = "folds"
    DESIGN = "design"
    FORGET = "forget"
    AIM = "aim"


# Fixed for ever: a changed number is a changed experiment. New purposes take the next free one.
PURPOSE_CODES: dict[Purpose, int] = {
    Purpose.INIT: 1,
    Purpose.ORDER: 2,
    Purpose.SPLIT: 3,
    Purpose.CORRUPT: 4,
    Purpose.MASKS: 5,
    Purpose.SEEDS: 6,
    Purpose.PROJECTION: 7,
    Purpose.BOOTSTRAP: 8,
    Purpose.ARMS: 9,
    Purpose.CALIBRATION: 10,
    Purpose.LABELS: 11,
    Purpose.SOLVER: 12,
    Purpose.POISON: 13,
    Purpose.VERDICT: 14,
    Purpose.REMOVAL: 15,
    Purpose.FOLDS: 16,
    Purpose.DESIGN: 17,
    Purpose.FORGET: 18,
    Purpose.AIM: 19,
}

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def checked_seed(seed: int) -> int:
    """A seed as a plain integer in [0, 2**63).

    Raises:
        RequestError: It is negative, too large, or no integer.
    """
    return _checked(seed, "seed")


def stream(seed: int, *key: int | str) -> np.random.Generator:
    """A generator of its own for (seed, *key).

    Args:
        seed: The experiment's seed, 0 <= seed < 2**63.
        key: A purpose and any number of indices in the same range, e.g.
            ``stream(0, Purpose.ORDER, epoch)``. A word must be one of `Purpose`.

    Raises:
        RequestError: The seed or an index is out of range, or the purpose is unknown.
    """
    return np.random.Generator(np.random.Philox(_sequence(seed, key)))


def torch_seed(seed: int, *key: int | str) -> int:
    """An integer for ``torch.Generator.manual_seed``, drawn from the same names as `stream`.

    It is in [0, 2**32): Torch's CPU generator ignores the higher bits.
    """
    return int(_sequence(seed, key).generate_state(1, np.uint32)[0])


def philox4x32(counter: NDArray[np.uint32], key: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Philox 4x32-10 (Salmon, Moraes, Dror and Shaw 2011), the reference of every faster copy.

    Args:
        counter: uint32 [..., 4].
        key: uint32 [..., 2], broadcast against the counters.

    Returns:
        uint32 [..., 4]: 128 random bits for each counter.
    """
    x0, x1, x2, x3 = (counter[..., word].astype(np.uint64) for word in range(4))
    k0, k1 = (key[..., word].astype(np.uint64) for word in range(2))
    for round_ in range(_ROUNDS):
        key0 = (k0 + np.uint64(round_ * _WEYL[0] & 0xFFFFFFFF)) & _LOW
        key1 = (k1 + np.uint64(round_ * _WEYL[1] & 0xFFFFFFFF)) & _LOW
        product0, product1 = _MULTIPLIERS[0] * x0, _MULTIPLIERS[1] * x2
        x0, x1, x2, x3 = (
            (product1 >> _SHIFT) ^ x1 ^ key0,
            product1 & _LOW,
            (product0 >> _SHIFT) ^ x3 ^ key1,
            product0 & _LOW,
        )
    words = np.broadcast_arrays(x0, x1, x2, x3)
    return np.stack(words, axis=-1).astype(np.uint32)


def _sequence(seed: int, key: tuple[int | str, ...]) -> np.random.SeedSequence:
    # Each index takes exactly two 32-bit words. NumPy would give a small one a single word, and
    # then (2**32,) and (0, 1) would be the same stream.
    words: list[int] = []
    for part in key:
        code = _purpose_code(part) if isinstance(part, str) else _checked(part, "stream index")
        words += [code & 0xFFFFFFFF, code >> 32]
    return np.random.SeedSequence(checked_seed(seed), spawn_key=tuple(words))


def _purpose_code(name: str) -> int:
    try:
        return PURPOSE_CODES[Purpose(name)]
    except ValueError:
        known = ", ".join(Purpose)
        raise RequestError(f"unknown stream purpose {name!r}; it must be one of {known}") from None


def _checked(value: int, what: str) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise RequestError(f"{what} {value!r} is not an integer; give one in [0, 2**63)") from None
    if not 0 <= number < SEED_LIMIT:
        raise RequestError(f"{what} {number} is out of range; give an integer in [0, 2**63)")
    return number
