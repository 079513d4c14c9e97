"""The methods of unlearning, each with what it can be told; none computes anything here.

Defaults are those of the methods' authors where they carry over, and stay near them elsewhere; the
learning rate above all is to be tuned on forget sets that are not reported.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from attribution.projection import Projection
from schemas.errors import NotFound, RecipeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """How parameters are moved.

    Args:
        lr: Learning rate of the first epoch.
        decay: What each further epoch multiplies it with.
        epochs: Passes over the method's rows.
        batch_size: Rows in a step.
        optimizer: ``adam`` or ``sgd``.
        momentum: Of sgd.
        weight_decay: Added to the gradient.

    Raises:
        RecipeError: A value is out of range.
    """

    lr: float = 1e-3
    decay: float = 1.0
    epochs: int = 5
    batch_size: int = 64
    optimizer: str = "adam"
    momentum: float = 0.9
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.optimizer not in ("adam", "sgd"):
            raise RecipeError(f"optimizer = {self.optimizer!r}; it must be adam or sgd")
        if not (0 < self.lr < float("inf") and 0 < self.decay <= 1):
            raise RecipeError(
                f"lr = {self.lr:g} and decay = {self.decay:g}; lr must be positive and decay lie "
                "in (0, 1]"
            )
        if self.epochs < 1 or self.batch_size < 1:
            raise RecipeError(
                f"epochs = {self.epochs} and batch_size = {self.batch_size}; each must be 1 or more"
            )
        if not (0 <= self.momentum < 1 and self.weight_decay >= 0):
            raise RecipeError(
                f"momentum = {self.momentum:g} and weight_decay = {self.weight_decay:g}; momentum "
                "lies in [0, 1) and weight decay is 0 or more"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTune:
    """Go on training on the rows that stay, and hope that the others fade."""

    tuning: Tuning = Tuning()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ascent:
    """Climb the loss of the rows to be forgotten."""

    tuning: Tuning = Tuning()


@dataclass(frozen=True, slots=True, kw_only=True)
class AscentDescent:
    """Climb on the forgotten rows in the first epochs, descend on the others in every epoch."""

    ascent_epochs: int = 3
    tuning: Tuning = Tuning()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrub:
    """SCRUB (Kurmanji et al. 2023): away from a frozen teacher on what goes, near it elsewhere.

    The teacher is the model itself before unlearning; the student is what moves. At the start they
    are one, and the divergence has no gradient but rounding, which adam would make a step of; sgd
    does not.

    Args:
        ascent_epochs: First epochs, in which the divergence on the forgotten rows is raised.
        temperature: Of both soft predictions.
        own_loss: Weight of cross-entropy on the rows that stay.
        distillation: Weight of the divergence there.
        tuning: How parameters are moved.
    """

    ascent_epochs: int = 3
    temperature: float = 4.0
    own_loss: float = 0.99
    distillation: float = 0.1
    tuning: Tuning = Tuning(optimizer="sgd", lr=5e-3)


@dataclass(frozen=True, slots=True, kw_only=True)
class GradDiff:
    """Climb on forgotten rows while descending on as many others (Liu et al. 2022).

    Args:
        retain: Weight of the others' loss.
        tuning: An epoch is a pass over the forgotten rows.
    """

    retain: float = 1.0
    tuning: Tuning = Tuning()


@dataclass(frozen=True, slots=True, kw_only=True)
class Npo:
    """Negative preference optimisation (Zhang et al. 2024), with the others' loss beside it.

    The loss of a forgotten row is -(2/beta) log sigmoid(-beta (log p - log p_before)), log p summed
    over a document's tokens: gradient ascent that lets go of a row once it is forgotten.

    Args:
        beta: Inverse temperature.
        retain: Weight of the others' loss.
        tuning: An epoch is a pass over the forgotten rows.
    """

    beta: float = 0.1
    retain: float = 1.0
    tuning: Tuning = Tuning()


@dataclass(frozen=True, slots=True, kw_only=True)
class InfluenceStep:
    """theta + (H + s I)^-1 sum_F grad l (Koh & Liang 2017; Guo et al. 2020).

    Args:
        newton: H of the rows that stay (a Newton step), not of all rows.
        hessian: ``gauss-newton`` or ``hessian``.
        damping: rho >= 0 in mean eigenvalues, besides the recipe's own ridge.
        iterations: Most products with H; models of up to 4,096 parameters are solved exactly.
        tolerance: Relative residual at which to stop.
    """

    newton: bool = True
    hessian: str = "gauss-newton"
    damping: float = 0.0
    iterations: int = 1000
    tolerance: float = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectedStep:
    """theta - a w: the influence step in the space of the scores' features, without a solver.

    Args:
        scale: a.
        curvature: As the scores'.
        damping: As the scores'.
        centred: As `optimize.unlearning.directions.forget_directions`.
        newton: Likewise; a and the best damping are then smaller, near 1 and 0.3.
        projection: As the scores'.
    """

    scale: float = 1.0
    curvature: str = "logistic"
    damping: float = 0.3
    centred: bool = True
    newton: bool = True
    projection: Projection = field(default_factory=Projection)


@dataclass(frozen=True, slots=True, kw_only=True)
class Matching:
    """Datamodel matching (Georgiev et al. 2024): tune until logits are the predicted ones.

    The targets are z(x) - a J(x) w of each model, on the forgotten rows, repeated, and on a sample
    of the others that is drawn once.

    Args:
        scale: a, from calibration (`optimize.unlearning.scale.removal_slopes`).
        forgotten_scale: a of the forgotten rows themselves; None: the same.
        curvature: As the scores'; "logistic" needs one pass over the training rows, "ggn" four.
        damping: As the scores'.
        centred: As `optimize.unlearning.directions.forget_directions`.
        newton: Likewise; a and the best damping are then smaller, near 1 and 0.3.
        projection: As the scores'.
        repeats: Times that each forgotten row is in an epoch.
        retain_per_forget: Other rows for each forgotten one, as far as there are so many.
        shared: The mean predicted change of all models for every model, not each its own.
        warm: Start from the projected step theta - a w, whose logits are right to first order.
        tuning: How parameters are moved.
    """

    scale: float = 1.0
    forgotten_scale: float | None = None
    curvature: str = "logistic"
    damping: float = 0.3
    centred: bool = True
    newton: bool = True
    projection: Projection = field(default_factory=Projection)
    repeats: int = 5
    retain_per_forget: float = 20.0
    shared: bool = False
    warm: bool = False
    tuning: Tuning = Tuning(lr=1e-4, decay=0.95, epochs=4, batch_size=512)


@dataclass(frozen=True, slots=True, kw_only=True)
class OracleMatching:
    """`Matching` with the logits of models that never saw the rows: the most that it can reach.

    Args:
        repeats: As `Matching`.
        retain_per_forget: As `Matching`.
        tuning: As `Matching`.
    """

    repeats: int = 5
    retain_per_forget: float = 20.0
    tuning: Tuning = Tuning(lr=1e-4, decay=0.95, epochs=4, batch_size=512)


Method = (
    FineTune
    | Ascent
    | AscentDescent
    | Scrub
    | GradDiff
    | Npo
    | InfluenceStep
    | ProjectedStep
    | Matching
    | OracleMatching
)

METHODS: dict[str, type[Any]] = {
    "finetune": FineTune,
    "ascent": Ascent,
    "ascent_descent": AscentDescent,
    "scrub": Scrub,
    "graddiff": GradDiff,
    "npo": Npo,
    "influence": InfluenceStep,
    "projected": ProjectedStep,
    "matching": Matching,
    "oracle_matching": OracleMatching,
}


def method_of(name: str, options: Mapping[str, Any] | None = None) -> Method:
    """A method by its name in `METHODS`; what `Tuning` holds may stand among the options.

    Raises:
        NotFound: There is no such method.
        RecipeError: It has no such option.
    """
    if name not in METHODS:
        raise NotFound(
            f"there is no unlearning method {name!r}; it must be one of {', '.join(METHODS)}"
        )
    kind, given = METHODS[name], dict(options or {})
    own = set(kind.__dataclass_fields__)
    common = set(Tuning.__dataclass_fields__) if "tuning" in own else set()
    unknown = sorted(set(given) - own - common)
    if unknown:
        known = ", ".join(sorted((own | common) - {"tuning"}))
        raise RecipeError(f"method {name!r} has no option {unknown[0]!r}; its options: {known}")
    moved = {key: given.pop(key) for key in list(given) if key in common}
    if "projection" in given and isinstance(given["projection"], Mapping):
        given["projection"] = Projection(**given["projection"])
    if moved:
        base = given.get("tuning", kind().tuning)
        given["tuning"] = Tuning(
            **{key: getattr(base, key) for key in Tuning.__dataclass_fields__} | moved
        )
    found: Method = kind(**given)
    return found
