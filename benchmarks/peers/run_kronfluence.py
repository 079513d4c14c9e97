"""The package kronfluence: EK-FAC with sampled labels, several checkpoints averaged here."""

import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping

import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks.peers.exchange import Answer, Clock, Problem, fisher_scale, margin, serve

# Its own default, its heuristic (None: 0.1 of the mean eigenvalue), and multiples of our unit.
GRID = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


class Digits(Task):
    """Summed cross-entropy, and a fall of the margin as the measurement."""

    def compute_train_loss(
        self, batch: tuple[Tensor, Tensor], model: nn.Module, sample: bool = False
    ) -> Tensor:
        """Summed over the batch, with labels sampled from the model where it asks for them."""
        inputs, targets = batch
        logits = model(inputs)
        if sample:
            with torch.no_grad():
                targets = torch.multinomial(logits.softmax(1), 1).flatten()
        return nn.functional.cross_entropy(logits, targets, reduction="sum")

    def compute_measurement(self, batch: tuple[Tensor, Tensor], model: nn.Module) -> Tensor:
        """Scores are <measurement, loss> products: with a fall, > 0 raises the margin."""
        inputs, targets = batch
        return -margin(model(inputs), targets).sum()


def factors(problem: Problem, options: Mapping[str, str]) -> Iterator[Answer]:
    """Factors of each checkpoint once, then scores at each damping."""
    unit = fisher_scale(problem)
    torch.manual_seed(0)
    train, queries = TensorDataset(*problem.train), TensorDataset(*problem.queries)
    store = tempfile.mkdtemp()
    first = Clock()
    analyzers = []
    with first.stage("features"):
        for number in range(len(problem.states)):
            task = Digits()
            analyzer = Analyzer(
                analysis_name=f"checkpoint_{number}",
                model=prepare_model(problem.model(number), task),
                task=task,
                cpu=True,
                log_level=logging.ERROR,
                disable_tqdm=True,
                output_dir=store,
            )
            analyzer.fit_all_factors(
                factors_name="factors",
                dataset=train,
                per_device_batch_size=len(train),
                factor_args=FactorArguments(strategy=options.get("strategy", "ekfac")),
            )
            analyzers.append(analyzer)
    settings: dict[str, float | None] = {"damping_factor 1e-08": 1e-8, "damping_factor None": None}
    settings |= {f"rho {rho:g}": rho * unit for rho in GRID}
    for setting, damping in settings.items():
        clock = first.fork()
        total: Tensor | float = 0.0
        with clock.stage("scores"):
            for analyzer in analyzers:
                name = setting.replace(" ", "_")
                analyzer.compute_pairwise_scores(
                    scores_name=name,
                    factors_name="factors",
                    query_dataset=queries,
                    train_dataset=train,
                    per_device_query_batch_size=len(queries),
                    per_device_train_batch_size=len(train),
                    score_args=ScoreArguments(damping_factor=damping),
                )
                total = total + analyzer.load_pairwise_scores(name)["all_modules"]
        yield Answer(setting=setting, scores=torch.as_tensor(total), clock=clock)
    shutil.rmtree(store)


if __name__ == "__main__":
    serve("kronfluence", {"factors": factors})
