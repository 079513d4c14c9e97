"""What a language model still knows of answers it was to forget (TOFU; Maini et al. 2024).

Everything is made of log-probabilities of answers, summed over their tokens and divided by their
number. The truth ratio compares wrong answers with the right one; forget quality compares its
distribution with that of a model that never saw the answers.
"""

import numpy as np
import numpy.typing as npt
from scipy import stats

from schemas.errors import ShapeError

FloatArray = npt.NDArray[np.float64]


def truth_ratio(correct: npt.ArrayLike, wrong: npt.ArrayLike) -> FloatArray:
    """Mean probability of wrong answers over that of the right one, both length-normalised.

    Args:
        correct: Log-probability per token of a paraphrase of the right answer, [n].
        wrong: The same of answers that are wrong in the same words, [n, several].

    Returns:
        Float64 [n], above 0; near 0 for a model that knows the answer.

    Raises:
        ShapeError: The shapes do not fit, or a value is not finite.
    """
    right, others = np.asarray(correct, dtype=np.float64), np.asarray(wrong, dtype=np.float64)
    if right.ndim != 1 or others.ndim != 2 or len(others) != len(right) or not others.size:
        raise ShapeError(
            f"right answers have shape {right.shape} and wrong ones {others.shape}; give [n] and "
            "[n, several]"
        )
    if not np.isfinite(right).all() or not np.isfinite(others).all():
        raise ShapeError("a log-probability is NaN or infinite; every answer needs a token")
    return np.exp(others - right[:, None]).mean(axis=1)


def forget_quality(unlearned: npt.ArrayLike, oracle: npt.ArrayLike) -> float:
    """P-value of a two-sample Kolmogorov-Smirnov test between truth ratios on the forget set.

    High: the unlearned model cannot be told from one that was trained without the rows.
    """
    return float(stats.ks_2samp(np.asarray(unlearned), np.asarray(oracle)).pvalue)


def model_utility(parts: npt.ArrayLike) -> float:
    """Harmonic mean of parts in [0, 1], so that one that is lost cannot be made up for; 0 with a 0.

    The parts are probabilities, ROUGE and max(0, 1 - truth ratio), each the mean over one set of
    questions that the model should still answer.

    Raises:
        ShapeError: There is no part, or one is negative.
    """
    values = np.asarray(parts, dtype=np.float64).ravel()
    if not len(values) or not (values >= 0).all():
        raise ShapeError(f"utility has parts {values.tolist()}; give one or more, none negative")
    return 0.0 if (values == 0).any() else float(stats.hmean(values))
