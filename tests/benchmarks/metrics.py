"""How fast and in how much memory a genome-wide screen is scored, against one pair of profiles at a time.

``python -m tests.benchmarks.metrics [--quick] --json FILE``. Deltas are made up: 10,000 perturbations x 8,000
genes, a prediction that is the observation and noise. Ours scores all of them with the functions of a report:
normalised retrieval, every Pearson metric, and apart from these Spearman's. The reference does as the public
code does for some queries and references of the same arrays in the same run, in turns with ours: for every
pair it centres the prediction and calls SciPy's ``pearsonr``; the time for all pairs follows from one.
Peak memory is this process's, arrays included; run it with two cores (``taskset -c 0,1``) to compare.
"""

import argparse
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from scipy.stats import pearsonr

from tests.benchmarks.record import Case, write
from txpert_dist.evaluate.scores import Pairs, pearson_metrics
from txpert_dist.evaluate.survey import TOP_GENES
from txpert_dist.metrics.differential import top_genes
from txpert_dist.metrics.pearson import unit_rows
from txpert_dist.metrics.ranks import spearman_delta
from txpert_dist.metrics.retrieval import rank_among

SIZES = {"full": (10_000, 8_000), "quick": (2_000, 4_000)}
ROUNDS = {"full": 1, "quick": 3}
AT_ONCE = 512
QUERIES, REFERENCES = 4, 250
LIMIT_S, LIMIT_GIB, LEAST_RATIO = 60.0, 4.0, 50.0
"""What the project wants of the full size on two cores."""

Array = NDArray[np.float64]


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, required=True)
    asked = parser.parse_args()
    size = "quick" if asked.quick else "full"
    predicted_PG, observed_PG = deltas(*SIZES[size])
    ours, pairwise, spearman = [], [], []
    for _ in range(ROUNDS[size]):
        pairwise.append(pair_seconds(predicted_PG, observed_PG))
        ours.append(
            (
                seconds(lambda: retrieval(predicted_PG, observed_PG)),
                seconds(lambda: pearson(predicted_PG, observed_PG)),
            )
        )
        pairwise.append(pair_seconds(predicted_PG, observed_PG))
        spearman.append(seconds(lambda: spearman_delta(predicted_PG, observed_PG)))
    retrieval_s, pearson_s = (median(times) for times in zip(*ours, strict=True))
    num = len(observed_PG)
    all_pairs_s = median(pairwise) * num * num
    gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    cases = [
        Case("normalised retrieval", retrieval_s, "s", "pair by pair, all pairs", all_pairs_s),
        Case("every Pearson metric", pearson_s, "s", "limit, with retrieval", LIMIT_S),
        Case("retrieval and Pearson metrics", retrieval_s + pearson_s, "s", "limit", LIMIT_S),
        Case("times faster than pair by pair", all_pairs_s / retrieval_s, "x", "wanted", LEAST_RATIO),
        Case("Spearman delta", median(spearman), "s", "every Pearson metric", pearson_s),
        Case("peak memory", gib, "GiB", "limit", LIMIT_GIB),
    ]
    write(
        asked.json,
        cases,
        perturbations=num,
        genes=observed_PG.shape[1],
        cores=len(os.sched_getaffinity(0)),
        pair_us=median(pairwise) * 1e6,
    )
    for case in cases:
        print(f"{case.name}: {case.value:.3g} {case.unit} ({case.reference}: {case.reference_value:.4g})")


def deltas(perturbations: int, genes: int, seed: int = 0) -> tuple[Array, Array]:
    """Predicted and observed, with a part that all perturbations share."""
    rng = np.random.default_rng(seed)
    observed_PG, predicted_PG = np.empty((perturbations, genes)), np.empty((perturbations, genes))
    shared_G = 0.1 * rng.standard_normal(genes)
    for row in range(perturbations):
        observed_PG[row] = shared_G + 0.1 * rng.standard_normal(genes)
        predicted_PG[row] = 0.5 * observed_PG[row] + 0.1 * rng.standard_normal(genes)
    return predicted_PG, observed_PG


def retrieval(predicted_PG: Array, observed_PG: Array) -> Array:
    """Normalised retrieval: every prediction among all observations."""
    rows = np.arange(len(observed_PG), dtype=np.int64)
    return rank_among(predicted_PG, observed_PG, unit_rows(observed_PG), rows)


def pearson(predicted_PG: Array, observed_PG: Array) -> list[Array]:
    """Every Pearson metric, choice of the most changed genes included."""
    mean_G = observed_PG.mean(0)
    own_PM = (np.arange(len(observed_PG), dtype=np.int32) % observed_PG.shape[1])[:, None]
    found: list[Array] = []
    for start in range(0, len(observed_PG), AT_ONCE):
        some = slice(start, start + AT_ONCE)
        observed = observed_PG[some]
        shared_PG = np.broadcast_to(mean_G, observed.shape)
        top_PK = top_genes(observed, TOP_GENES)
        found += pearson_metrics(
            Pairs(predicted_PG[some], observed, shared_PG, own_PM[some], top_PK)
        ).values()
    return found


def pair_seconds(predicted_PG: Array, observed_PG: Array) -> float:
    """Seconds a pair, one pair at a time, with a control mean to subtract from the prediction each time."""
    control_G = np.zeros(observed_PG.shape[1])
    step = max(1, len(observed_PG) // REFERENCES)

    def loop() -> None:
        for query in range(QUERIES):
            for reference in range(0, step * REFERENCES, step):
                pearsonr(predicted_PG[query] - control_G, observed_PG[reference])

    return seconds(loop) / (QUERIES * REFERENCES)


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
