"""Estimators: each turns checkpoints, or a bank of retrained models, into scores.

The package is also the function that lists them, `attribution.estimators()`: a package and a
function cannot share a name otherwise, for importing any module of the package would hide the
function.
"""

import sys
from dataclasses import dataclass
from enum import StrEnum
from types import ModuleType


class Reads(StrEnum):
    """What an estimator learns from besides the rows and the queries."""

    CHECKPOINTS = "checkpoints"
    BANK = "bank"
    RECIPE = "recipe"
    ROWS = "rows"


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatorDescription:
    """One line of the list of estimators.

    Attributes:
        name: What `attribution.attribute` takes.
        needs: What it must be given.
        cost: Time and memory for n rows, m queries, C checkpoints and a sketch k wide.
        source: The paper.
        home: ``module:function`` that computes it; the function takes a `Request` and options by
            keyword, and returns scores [n_query, n_train] and what to record of them.
        reads: What it learns from besides rows and queries.
    """

    name: str
    needs: str
    cost: str
    source: str
    home: str
    reads: Reads = Reads.CHECKPOINTS


_DESCRIPTIONS = (
    EstimatorDescription(
        name="trak",
        needs="one checkpoint or more (independently seeded: 5 to 20); a bank tunes the damping",
        cost=(
            "C (n + m) gradients, C n k min(n, k) for the curvature, C m n k for the scores; "
            "4 C (n + m) k bytes"
        ),
        source="Park et al. 2023; the curvatures p(1-p) and Gauss-Newton are options",
        home="attribution.estimators.trak:estimate",
    ),
    EstimatorDescription(
        name="influence",
        needs="one checkpoint or more, near a minimum; a bank tunes the damping",
        cost=(
            "C x (products with the curvature, each a forward and two backward passes over n rows "
            "for a vector: lanczos 2 x rank, cg 20 to 200 x m; exact p^2 numbers, p^3/3), "
            "C n gradients a block of queries; m n numbers"
        ),
        source=(
            "Koh & Liang 2017; solvers of Agarwal et al. 2017, Schioppa et al. 2022 and "
            "Frangella et al. 2023"
        ),
        home="attribution.estimators.influence:estimate",
    ),
    EstimatorDescription(
        name="graddot",
        needs="one checkpoint or more",
        cost="C (n + m) gradients and C m n p; m n numbers",
        source="Charpiat et al. 2019; Pruthi et al. 2020",
        home="attribution.estimators.similarity:estimate_graddot",
    ),
    EstimatorDescription(
        name="gradcos",
        needs="one checkpoint or more",
        cost="as graddot",
        source="Charpiat et al. 2019; by layer: Hammoudeh & Lowd 2022",
        home="attribution.estimators.similarity:estimate_gradcos",
    ),
    EstimatorDescription(
        name="tracin",
        needs="checkpoints of one training run, and the learning rate each stands for",
        cost="as graddot",
        source="Pruthi et al. 2020; normalised: Hammoudeh & Lowd 2022",
        home="attribution.estimators.similarity:estimate_tracin",
    ),
    EstimatorDescription(
        name="gas",
        needs="as tracin",
        cost="as graddot",
        source="Hammoudeh & Lowd 2022: TracIn with gradients, or layers' gradients, of length one",
        home="attribution.estimators.similarity:estimate_gas",
    ),
    EstimatorDescription(
        name="less",
        needs="checkpoints of one run of Adam, and the optimiser's moments at each",
        cost="as graddot; C x 2 p numbers",
        source="Xia et al. 2024; graddot and gradcos take the moments too",
        home="attribution.estimators.similarity:estimate_less",
    ),
    EstimatorDescription(
        name="ekfac",
        needs="one checkpoint or more; a bank tunes the damping",
        cost=(
            "C x (10 gradient passes over n, one over m, the cube of each layer's sides), C m n p "
            "for the scores; C (p + squares of the layers' sides) numbers"
        ),
        source="George et al. 2018; Grosse et al. 2023",
        home="attribution.estimators.kfac:estimate_ekfac",
    ),
    EstimatorDescription(
        name="kfac",
        needs="as ekfac",
        cost="as ekfac",
        source="Martens and Grosse 2015; Grosse et al. 2023",
        home="attribution.estimators.kfac:estimate_kfac",
    ),
    EstimatorDescription(
        name="alo",
        needs="a model of one linear layer at its minimum, and its ridge",
        cost="the cube of the parameters, n m outputs; each further step n^2 (parameters)^2",
        source="Pregibon 1981; Rad & Maleki 2020; exact for least squares",
        home="attribution.estimators.leave_out:estimate_alo",
    ),
    EstimatorDescription(
        name="jackknife",
        needs="as alo",
        cost="the cube of the parameters, m n (parameters)",
        source="Jaeckel 1972; Giordano et al. 2018",
        home="attribution.estimators.leave_out:estimate_jackknife",
    ),
    EstimatorDescription(
        name="banzhaf",
        needs=(
            "a bank whose subsets hold each row with probability 1/2 "
            "(attribution.valuation.bernoulli_masks); no checkpoint"
        ),
        cost="no gradient; 2 M m n multiplications for a bank of M subsets",
        source="Wang & Jia 2023",
        home="attribution.valuation.banzhaf:estimate",
        reads=Reads.BANK,
    ),
    EstimatorDescription(
        name="knn_shapley",
        needs="classes; one checkpoint or more, for their last hidden layer, or features",
        cost="C (n + m) forward passes, C m n (width + log n)",
        source="Jia et al. 2019",
        home="attribution.valuation.knn:estimate",
    ),
    EstimatorDescription(
        name="logra",
        needs="one checkpoint or more; a bank tunes the damping",
        cost=(
            "C x (5 n + m gradients, none of them formed; n k^2 and k^3 summed over the layers' "
            "parts of k), C m n k for the scores; C (n + m + k) k numbers"
        ),
        source="Choe et al. 2024; projected Fisher matrix, sampled or observed labels",
        home="attribution.estimators.logra:estimate",
    ),
    EstimatorDescription(
        name="datainf",
        needs="one checkpoint or more; a bank tunes the damping",
        cost="C x (one pass over n, and three for each block of queries), 3 C m n p; m p numbers",
        source="Kwon et al. 2024",
        home="attribution.estimators.datainf:estimate",
    ),
    EstimatorDescription(
        name="source",
        needs="checkpoints of one run of SGD, and the weights of training.recipe.exposures",
        cost="as ekfac without a tuning: C x (8 gradient passes over n) and C m n p; L p numbers",
        source="Bae et al. 2024",
        home="attribution.estimators.source:estimate",
    ),
    EstimatorDescription(
        name="representer",
        needs="one checkpoint or more whose head is linear and stationary, or is refitted",
        cost="C (n + m) forward passes and C m n d for a head d wide; C (n + m) d numbers",
        source="Yeh et al. 2018",
        home="attribution.estimators.representer:estimate",
    ),
    EstimatorDescription(
        name="similarity",
        needs="one checkpoint or more with a linear head, or the name of a layer",
        cost="as representer",
        source="Charpiat et al. 2019; Hanawa et al. 2021 compare the measures",
        home="attribution.estimators.representations:estimate_similarity",
    ),
    EstimatorDescription(
        name="embedding",
        needs="an embedding of each row and query; no model",
        cost="m n d for embeddings d wide",
        source="Hanawa et al. 2021, of any representation",
        home="attribution.estimators.representations:estimate_embedding",
        reads=Reads.ROWS,
    ),
    EstimatorDescription(
        name="bm25",
        needs="token ids as inputs, or the text of each row and query; no model",
        cost="the index's words, then for each query the rows that share its words",
        source="Robertson & Zaragoza 2009; bm25s: Lù 2024",
        home="attribution.estimators.retrieval:estimate_bm25",
        reads=Reads.ROWS,
    ),
    EstimatorDescription(
        name="datamodel",
        needs="a bank of M retrained models, some hundreds; no checkpoint",
        cost=(
            "ridge min(n, M)^2 max(n, M) and a cube of the smaller; LASSO n^2 M and 6 paths of m "
            "fits on few columns; smaller Gram matrix and 2 m n numbers"
        ),
        source="Ilyas et al. 2022; ridge with the exact leave-one-mask-out error is an option",
        home="attribution.estimators.resampling.datamodel:estimate",
        reads=Reads.BANK,
    ),
    EstimatorDescription(
        name="empirical_influence",
        needs="a bank of M retrained models, some hundreds; no checkpoint",
        cost="2 M m n; 6 m n numbers",
        source="Feldman & Zhang 2020",
        home="attribution.estimators.resampling.empirical:estimate",
        reads=Reads.BANK,
    ),
    EstimatorDescription(
        name="metagradient",
        needs="the recipe and the seeds of the runs to be explained; no checkpoint",
        cost=(
            "for each of S seeds 3 trainings, and m products with the batch's Hessian a step; "
            "2 sqrt(steps) states and 2 m p numbers (3 m p with adamw)"
        ),
        source="Hara et al. 2019; Engstrom et al. 2025; MAGIC of Ilyas & Engstrom 2025",
        home="attribution.estimators.metagradient:estimate",
        reads=Reads.RECIPE,
    ),
)


def describe() -> list[EstimatorDescription]:
    """Every estimator with what it needs, what it costs and where it comes from."""
    return list(_DESCRIPTIONS)


class _CallablePackage(ModuleType):
    def __call__(self) -> list[EstimatorDescription]:
        return describe()


sys.modules[__name__].__class__ = _CallablePackage
