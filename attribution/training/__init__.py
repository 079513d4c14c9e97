"""Training many models as one: recipes, stacks of models, their states and predictions."""

from attribution.training.jobs import TrainingPath
from attribution.training.prediction import predict
from attribution.training.recipe import Optimizer, Recipe, Schedule, epoch_order
from attribution.training.state import TrainingState, load_state, save_state
from attribution.training.train import TrainedModels, train_models, train_one_reference

__all__ = [
    "Optimizer",
    "Recipe",
    "Schedule",
    "TrainedModels",
    "TrainingPath",
    "TrainingState",
    "epoch_order",
    "load_state",
    "predict",
    "save_state",
    "train_models",
    "train_one_reference",
]
