"""From values per unit to what a report shows of them: means, intervals, comparisons, the long table.

Enters: scored groups and conditions. Leaves: ``Summary``, ``Comparison`` and a table. Invariant: pure
functions of the values and the bootstrap's seed; all intervals are over the same resampled perturbations.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from txpert_dist.evaluate import reproducibility
from txpert_dist.evaluate.blocks import Scored
from txpert_dist.evaluate.report import Comparison, Gain, Kind, Summary
from txpert_dist.evaluate.scores import CORRELATIONS, METRICS, Values
from txpert_dist.metrics.aggregate import mean_ignoring_nan
from txpert_dist.metrics.bootstrap import Bootstrap, bootstrap_means

GROUP = "perturbation, cell line"
CONDITION = "perturbation, cell line, batch"


def summaries(
    scored: Scored, kinds: Mapping[str, Kind], unit: str, bootstrap: Bootstrap
) -> tuple[Summary, ...]:
    """A row for each of ``scored``'s values, in order; ``kinds`` of those that are not reproducibility."""
    columns_UM = np.stack([values[m] for values in scored.values.values() for m in METRICS], axis=1)
    found = iter(bootstrap_means(columns_UM, scored.perturbation, bootstrap))
    return tuple(
        Summary(
            name,
            unit,
            {metric: mean_ignoring_nan(values[metric]) for metric in METRICS},
            kinds.get(name, "reproducibility"),
            {metric: next(found) for metric in METRICS},
        )
        for name, values in scored.values.items()
    )


def comparisons(scored: Scored, models: Sequence[str], bootstrap: Bootstrap) -> tuple[Comparison, ...]:
    """Every model against every other row of the same genes, over the units where both are defined."""
    others = [name for name in scored.values if name not in (*models, reproducibility.RESELECTED)]
    pairs = [(model, other) for model in models for other in others]
    return paired(scored, pairs, bootstrap)


def paired(scored: Scored, pairs: Sequence[tuple[str, str]], bootstrap: Bootstrap) -> tuple[Comparison, ...]:
    """The first row of each pair against the second, over the units where both are defined."""
    if not pairs:
        return ()
    columns = [
        scored.values[model][metric] - scored.values[other][metric]
        for model, other in pairs
        for metric in METRICS
    ]
    ends = iter(bootstrap_means(np.stack(columns, axis=1), scored.perturbation, bootstrap))
    differences = iter(columns)
    result = []
    for model, other in pairs:
        gains = {}
        for metric, definition in METRICS.items():
            difference, interval = next(differences), next(ends)
            mean = mean_ignoring_nan(difference)
            better = difference > 0 if definition.higher_is_better else difference < 0
            gains[metric] = Gain(mean.mean, *interval, mean.num_values, int(better.sum()))
        result.append(Comparison(model, other, gains))
    return tuple(result)


def corrected(rows: Sequence[Summary]) -> dict[str, dict[str, float | None]]:
    """Spearman-Brown of the mean correlations of split halves."""
    halves = (reproducibility.POOLED, reproducibility.PER_BATCH)
    return {
        row.name: {
            metric: None if (mean := row.metrics[metric].mean) is None else _finite(mean)
            for metric in CORRELATIONS
        }
        for row in rows
        if row.name in halves
    }


def long_table(
    groups: Scored,
    conditions: Scored,
    line_of_condition: NDArray[np.int64],
    kinds: Mapping[str, Kind],
    *,
    perturbations: Sequence[str],
    lines: Sequence[str],
    tasks: NDArray[np.str_],
) -> pd.DataFrame:
    """One row for each group and row of the report; conditions averaged within their group.

    ``tasks`` names the task of each group.
    """
    keys = pd.DataFrame({"code": groups.perturbation, "line": groups.place})
    found = pd.DataFrame(
        {"code": conditions.perturbation, "line": line_of_condition}
        | conditions.values[reproducibility.PER_BATCH]
    )
    means = found.groupby(["code", "line"], as_index=False).mean()
    batches = found.groupby(["code", "line"], as_index=False).size()
    per_batch = keys.merge(means, on=["code", "line"], how="left", validate="one_to_one")
    num_batches = keys.merge(batches, on=["code", "line"], how="left", validate="one_to_one")["size"]
    values: dict[str, Values] = dict(groups.values)
    values[reproducibility.PER_BATCH] = {metric: per_batch[metric].to_numpy() for metric in METRICS}
    labels = pd.DataFrame(
        {
            "perturbation": np.array(perturbations)[groups.perturbation],
            "cell_line": np.array(lines)[groups.place],
            "task": tasks,
            "num_cells": groups.num_cells,
            "num_batches": num_batches,
            "observed_size": groups.observed_size,
        }
    )
    nothing = np.full(len(labels), np.nan)
    pieces = [
        labels.assign(
            predictor=name,
            kind=kinds.get(name, "reproducibility"),
            predicted_size=groups.predicted_size.get(name, nothing),
            **metrics,
        )
        for name, metrics in values.items()
    ]
    return pd.concat(pieces, ignore_index=True)


def _finite(correlation: float) -> float | None:
    value = reproducibility.spearman_brown(correlation)
    return None if np.isnan(value) else value
