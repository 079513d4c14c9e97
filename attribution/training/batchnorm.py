"""Batch norm in training: which layers tie rows together, and what a batch of one row does there.

Scores need no care for it: gradients are taken in eval mode, where running statistics make each
row's output its own (`attribution.gradients.plan` refuses what has none). Retraining is the model's
own, statistics of batches included. Only a derivative through training meets the tie.
"""

from torch import Tensor, nn

from schemas.errors import RecipeError

_BatchNorm = nn.modules.batchnorm._BatchNorm


def batch_norms(model: nn.Module) -> dict[str, nn.modules.batchnorm._BatchNorm]:
    """The layers of a model, by name, that normalise over the rows of a batch while it trains.

    Args:
        model: In training mode. A layer that its ``train`` leaves in eval mode is frozen.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)
    }


def described(name: str, norm: nn.Module) -> str:
    """A layer as messages name it: ``'net.1' is a BatchNorm1d``."""
    return f"{name!r} is a {type(norm).__name__}" if name else f"it is a {type(norm).__name__}"


def refuse_unkept_statistics(model: nn.Module) -> None:
    """Refuse layers that have no statistics but those of the batch, in eval mode too.

    Raises:
        RecipeError: There is one; what the model says of a row would depend on the rows beside it.
    """
    for name, norm in batch_norms(model).items():
        if norm.running_mean is None:
            raise RecipeError(
                f"{described(name, norm)} without running statistics: what the model says of a "
                "row depends on the rows beside it; say track_running_stats=True, or use "
                "LayerNorm or GroupNorm"
            )


def refuse_tied_rows(model: nn.Module) -> None:
    """Refuse batch norm where training itself is differentiated by the weights of rows.

    Raises:
        RecipeError: A layer normalises over batches, so that a row of weight 0 still acts.
    """
    for name, norm in batch_norms(model).items():
        raise RecipeError(
            f"{described(name, norm)}: it ties the rows of a batch together, so that a row of "
            "weight 0 still acts on others; use LayerNorm or GroupNorm, freeze it, or take a "
            "method that reads checkpoints"
        )


def normalise_lone_rows(model: nn.Module) -> None:
    """Let batch norm use its running statistics where a batch holds one value a channel.

    The last batch of an epoch may be one row, which torch refuses, for its variance is 0; subsets
    are of any size, so that models of the same recipe would train or not by the number of their
    rows. Batches that torch takes are left as they are.

    Args:
        model: A module in training mode; it is changed in place.
    """
    for norm in batch_norms(model).values():
        if norm.running_mean is not None:
            norm.register_forward_pre_hook(_choose_statistics)


def _choose_statistics(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
    norm.training = given[0].numel() > given[0].shape[1]
