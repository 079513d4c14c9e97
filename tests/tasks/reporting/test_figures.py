"""Pictures are drawn without pyplot, from arrays or from findings, and stay small."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from schemas.errors import ShapeError
from tasks.reporting import figures
from tasks.reporting.gallery import gallery, image_shape_of

RNG = np.random.default_rng(7)
IMAGES = RNG.random((12, 8, 8))
CAPTIONS = [f"{i % 10} (true {i % 7})" for i in range(12)]
ARMS = {"all": (0.92, 0.91, 0.93), "random": (0.90, 0.89, 0.92), "chosen": (0.96, 0.95, 0.97)}
PREDICTED = np.concatenate([RNG.normal(2, 0.1, 30), RNG.normal(3, 0.1, 30)])
OBSERVED = PREDICTED + RNG.normal(0, 0.1, 60)
GROUPS = ["50 % of the rows"] * 30 + ["90 % of the rows"] * 30


def titles(figure: Figure) -> list[str]:
    found = [axes.get_title(loc="left") for axes in figure.axes]
    return [text for text in found if text]


def test_drawing_never_loads_pyplot() -> None:
    code = (
        "import sys, numpy as np; from tasks.reporting import figures as f; "
        "from tasks.reporting.gallery import gallery; "
        "f.png(f.arms({'chosen': (.9, .8, 1.)}, title='a')); "
        "f.png(gallery(np.zeros((2, 8, 8)), ['a', 'b'])); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_the_same_figure_gives_the_same_bytes() -> None:
    assert figures.png(figures.arms(ARMS, title="a")) == figures.png(figures.arms(ARMS, title="a"))


def test_arms_are_drawn_chosen_first_under_what_retraining_said() -> None:
    figure = figures.arms(ARMS, title="It helped")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["chosen", "all", "random"]
    assert titles(figure) == ["It helped"]


def test_log_probabilities_are_drawn_beside_the_same_arms() -> None:
    logprobs = {"all": (-0.2, -0.3, -0.1), "chosen": (-0.4, -0.5, -0.3), "random": (-0.3, -0.4, 0)}
    left, right = figures.arms(ARMS, title="It helped", logprobs=logprobs).axes
    assert right.get_ylim() == left.get_ylim()
    assert right.get_xlabel().startswith("mean logprob")
    drawn = [line.get_xdata()[0] for line in right.lines if len(line.get_xdata()) == 1]
    assert drawn == [-0.4, -0.2, -0.3]


def test_lds_is_drawn_with_its_ceiling_and_without_its_missing_queries() -> None:
    values = np.array([0.1, np.nan, 0.4, -0.2])
    figure = figures.lds_per_query(values, mean=(0.1, 0.0, 0.2), ceiling=0.6)
    assert titles(figure) == ["Scores rank retrained models at 0.10; noise allows 0.60"]
    assert figure.axes[0].get_xlabel() == "3 queries, sorted"
    assert figure.axes[0].get_ylim()[0] < -0.2


def test_correlation_is_stated_within_one_subset_size() -> None:
    noise = RNG.normal(0, 0.05, 60)
    unrelated = np.repeat([2.0, 3.0], 30) + noise
    shuffled = np.repeat([2.0, 3.0], 30) + RNG.permutation(noise)
    figure = figures.predicted_against_observed(unrelated, shuffled, groups=GROUPS)
    (title,) = titles(figure)
    r = float(title.split("r = ")[1].split()[0])
    assert abs(r) < 0.5 < np.corrcoef(unrelated, shuffled)[0, 1]


def test_predictions_and_observations_come_in_pairs() -> None:
    with pytest.raises(ShapeError, match="give pairs"):
        figures.predicted_against_observed(np.zeros(3), np.zeros(4))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((64,), (8, 8)),
        ((784,), (28, 28)),
        ((8, 8), (8, 8)),
        ((1, 28, 28), (1, 28, 28)),
        ((3, 32, 32), (3, 32, 32)),
        ((32, 32, 3), (32, 32, 3)),
        ((4,), None),
        ((9,), None),
        ((10,), None),
        ((2, 500), None),
    ],
)
def test_pictures_are_recognised_by_their_shape(shape, expected) -> None:
    assert image_shape_of(shape) == expected


@pytest.mark.parametrize("shape", [(8, 8), (64,), (1, 8, 8), (3, 8, 8), (8, 8, 3)])
def test_a_gallery_shows_a_picture_for_each_row(shape) -> None:
    figure = gallery(RNG.random((5, *shape)), CAPTIONS[:5])
    assert len(figure.axes) == 5
    assert all(axes.images for axes in figure.axes)
    figures.png(figure, dpi=50)


def test_rows_of_a_table_are_shown_by_their_oddest_features() -> None:
    rows = np.zeros((2, 10))
    rows[0, 7] = 5.0
    background = RNG.normal(size=(100, 10))
    names = [f"feature {i}" for i in range(10)]
    figure = gallery(rows, ["a", "b"], background=background, feature_names=names)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[-1] == "feature 7"
    assert not figure.axes[0].images


def test_the_whole_answer_calls_features_by_their_names() -> None:
    names = [f"feature {i}" for i in range(10)]
    arms = {"chosen": (0.9, 0.8, 1.0), "all": (0.8, 0.7, 0.9)}
    observed = np.array([0.1, 0.2, 0.4])
    for given, first in ((names, "feature"), (None, "x")):
        figure = figures.hero(
            RNG.random((2, 10)), ["a", "b"], arms, observed, observed, feature_names=given
        )
        labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        assert all(label.startswith(first) for label in labels)


def test_a_gallery_of_nothing_is_only_a_title() -> None:
    assert gallery(np.zeros((0, 8, 8)), []).axes == []


def test_a_gallery_needs_a_caption_for_each_row() -> None:
    with pytest.raises(ShapeError, match="2 captions for 3 rows"):
        gallery(np.zeros((3, 8, 8)), ["a", "b"])


def test_labels_with_dollar_signs_are_not_read_as_mathematics() -> None:
    figure = gallery(IMAGES[:1], ["$\\frac{$ or $x$"])
    figures.png(figure, dpi=50)


def test_the_hero_is_one_picture_that_fits_a_readme() -> None:
    figure = figures.hero(
        IMAGES, CAPTIONS, ARMS, PREDICTED, OBSERVED, groups=GROUPS, points={"all": (3, 3)}
    )
    assert len(figures.png(figure, dpi=120)) <= figures.HERO_BYTES


@pytest.mark.parametrize("unknown", [None, float("nan")])
def test_an_unknown_interval_is_drawn_as_its_mean(unknown) -> None:
    arms = {"chosen": (0.9, unknown, unknown), "all": (0.8, 0.7, 0.9)}
    figures.png(figures.arms(arms, title="It helped"), dpi=50)
    figure = figures.lds_per_query(np.ones(3), mean=(1.0, unknown, unknown), ceiling=unknown)
    assert titles(figure) == ["Scores rank retrained models at 1.00"]


def test_arms_without_accuracy_are_drawn_by_their_output() -> None:
    figure = figures.arms({"chosen": (-0.5, -0.6, -0.4)}, title="", measure="squared_error")
    assert figure.axes[0].get_xlabel().startswith("squared_error")
