"""What training data is worth: values of cooperative games, a row or a source being a player.

    game = retraining_game(model, train, queries=queries, training=recipe, aggregate=weights)
    vendors = Sources(vendor_of_row)
    worth = value(vendors.game(game), len(vendors), method="shapley")
    worth.values, worth.standard_errors, worth.sentence

A value > 0 means that the player raises the utility. Any function of coalitions is a utility;
`retraining_game` makes one of a model that is trained on each coalition.
"""

from attribution.valuation.banzhaf import banzhaf_values, bernoulli_masks
from attribution.valuation.game import Game, Utility
from attribution.valuation.knn import knn_shapley
from attribution.valuation.retraining import correct, retraining_game, untrained
from attribution.valuation.sources import Sources
from attribution.valuation.values import Method, Values, value

__all__ = [
    "Game",
    "Method",
    "Sources",
    "Utility",
    "Values",
    "banzhaf_values",
    "bernoulli_masks",
    "correct",
    "knn_shapley",
    "retraining_game",
    "untrained",
    "value",
]
