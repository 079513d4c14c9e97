"""LDS against seconds: every name is readable, and the title claims no more than was measured."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from schemas.errors import ShapeError
from tasks.reporting.bakeoff import Contender, bake_off, spread
from tasks.reporting.canvas import png

TRAK = Contender(name="trak", seconds=1.3, lds=(0.68, 0.66, 0.70), ceiling=0.88)
KERNEL = Contender(name="after-kernel", seconds=1.4, lds=(0.65, 0.63, 0.67), ceiling=0.88)
DOT = Contender(name="graddot", seconds=0.7, lds=(0.31, 0.27, 0.35), ceiling=0.88)


def test_points_stand_at_their_seconds_and_lds_on_a_logarithmic_axis() -> None:
    (axes,) = bake_off([TRAK, DOT]).axes
    assert axes.get_xscale() == "log"
    points = {tuple(line.get_xydata()[0]) for line in axes.lines if line.get_marker() == "o"}
    assert points == {(1.3, 0.68), (0.7, 0.31)}
    assert "training not counted" in axes.get_xlabel()


@pytest.mark.parametrize("alike", [False, True])
def test_names_of_many_methods_do_not_overlap(alike: bool) -> None:
    rng = np.random.default_rng(0)
    means = np.full(14, 0.4) if alike else 0.4 + 0.02 * rng.standard_normal(14)
    contenders = [
        Contender(name=f"method {number}", seconds=1 + number, lds=(mean, mean - 0.1, mean + 0.1))
        for number, mean in enumerate(means)
    ]
    figure = bake_off(contenders)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    named = [text for text in figure.axes[0].texts if text.get_text().startswith("method")]
    # An annotation's own extent holds its line as well.
    boxes = sorted(
        (Text.get_window_extent(text, canvas.get_renderer()) for text in named),
        key=lambda box: box.y0,
    )
    assert len(boxes) == 14
    assert all(below.y1 <= above.y0 for below, above in pairwise(boxes))
    assert boxes[0].y0 >= 0
    assert boxes[-1].y1 <= figure.bbox.height


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.01, 0.05))
def test_places_keep_their_order_and_distance_and_stay_put_where_there_is_room(
    wanted: list[float], gap: float
) -> None:
    places = spread(np.sort(wanted), gap)
    assert (np.diff(places) >= gap - 1e-9).all()
    assert places.min() >= -1e-9
    assert places.max() <= 1 + 1e-9
    free = np.linspace(0, 1, 5)
    np.testing.assert_allclose(spread(free, 0.05), free, atol=1e-12)


@pytest.mark.parametrize(
    ("contenders", "title"),
    [
        ([TRAK, DOT], "trak predicts retraining best"),
        ([DOT, KERNEL, TRAK], "trak has the highest LDS; 1 other is not clearly worse"),
        ([DOT], "graddot ranks retrained models at 0.31"),
    ],
)
def test_the_title_names_a_winner_only_where_its_interval_is_above_all_others(
    contenders: list[Contender], title: str
) -> None:
    assert bake_off(contenders).axes[0].get_title(loc="left") == title


def test_one_ceiling_is_a_line_and_several_are_a_band() -> None:
    other = Contender(name="loss", seconds=2.0, lds=(0.5, 0.4, 0.6), ceiling=0.7)
    notes = [text.get_text() for text in bake_off([TRAK, other]).axes[0].texts]
    assert "noise ceilings 0.70 to 0.88" in notes
    assert "noise ceiling 0.88" in [text.get_text() for text in bake_off([TRAK]).axes[0].texts]


def test_the_same_bake_off_gives_the_same_bytes() -> None:
    assert png(bake_off([TRAK, DOT])) == png(bake_off([TRAK, DOT]))


def test_a_bake_off_of_nothing_or_of_no_time_is_refused() -> None:
    with pytest.raises(ShapeError, match="at least one"):
        bake_off([])
    with pytest.raises(ShapeError, match="took 0 s"):
        bake_off([Contender(name="none", seconds=0, lds=(0.1, 0.0, 0.2))])
