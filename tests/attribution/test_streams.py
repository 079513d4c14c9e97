import numpy as np
import pytest

from attribution.streams import (
    PURPOSE_CODES,
    Purpose,
    philox4x32,
    stream,
    torch_seed,
)
from schemas.errors import RequestError


def words(text: str) -> np.ndarray:
    return np.array([int(word, 16) for word in text.split()], dtype=np.uint32)


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (
            "ffffffff ffffffff ffffffff ffffffff",
            "ffffffff ffffffff",
            "408f276d 41c83b0e a20bc7c6 6d5451fd",
        ),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter: str, key: str, answer: str) -> None:
    np.testing.assert_array_equal(philox4x32(words(counter), words(key)), words(answer))


def test_philox_works_on_arrays_of_counters() -> None:
    counters = np.arange(40, dtype=np.uint32).reshape(2, 5, 4)
    key = words("12 34")
    got = philox4x32(counters, key)
    assert got.shape == (2, 5, 4)
    np.testing.assert_array_equal(got[1, 3], philox4x32(counters[1, 3], key))


def test_a_stream_is_its_name() -> None:
    first = stream(7, Purpose.ORDER, 3).random(5)
    np.testing.assert_array_equal(first, stream(7, "order", np.int64(3)).random(5))
    for other in (stream(7, "order", 4), stream(8, "order", 3), stream(7, "init", 3)):
        assert not np.array_equal(first, other.random(5))


def test_names_that_numpy_would_confuse_are_different_streams() -> None:
    assert torch_seed(0, 2**32) != torch_seed(0, 0, 1)
    assert torch_seed(0, 1) != torch_seed(0, 1, 0)
    assert torch_seed(0) != torch_seed(0, 0)
    assert torch_seed(2**32, 1) != torch_seed(0, 1, 1)


def test_torch_seeds_do_not_collide_among_neighbours() -> None:
    seeds = {torch_seed(s, Purpose.INIT, i) for s in range(20) for i in range(20)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**32 for seed in seeds)


@pytest.mark.parametrize("seed", [-1, 2**63, 10**30, 1.5, "0"])
def test_seeds_out_of_range_are_refused(seed: int) -> None:
    with pytest.raises(RequestError, match="seed"):
        stream(seed, Purpose.INIT)


def test_unknown_purposes_and_negative_indices_are_refused() -> None:
    with pytest.raises(RequestError, match="unknown stream purpose 'shuffle'"):
        stream(0, "shuffle")
    with pytest.raises(RequestError, match="index -2"):
        stream(0, Purpose.INIT, -2)


def test_the_table_of_purposes_is_closed_and_never_renumbered() -> None:
    assert set(PURPOSE_CODES) == set(Purpose)
    assert list(PURPOSE_CODES.values()) == list(range(1, 20))
    assert [p.value for p in PURPOSE_CODES][:6] == [
        "init",
        "order",
        "split",
        "corrupt",
        "masks",
        "seeds",
    ]
    assert torch_seed(0, Purpose.INIT) == 3953331965
