"""Mean scores of groups of perturbations: tasks, knowledge tiers, or any other.

Enters: the table of a report (one row for each perturbation, cell line and predictor) and the group of every
row. Leaves: one row for each predictor, group and metric. Invariant: units without a group and values that
are undefined are counted, never dropped without a word.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from txpert_dist.metrics.aggregate import mean_ignoring_nan
from txpert_dist.metrics.bootstrap import Bootstrap, Interval, bootstrap_means

NO_GROUP = "none"
_NOT_METRICS = frozenset(("num_cells", "num_batches"))


class GroupMean(NamedTuple):
    """A predictor's mean over the units of a group."""

    predictor: str
    group: str
    metric: str
    mean: float | None
    low: float | None
    """Ends of the bootstrap interval, the group's perturbations resampled."""
    high: float | None
    num_values: int
    num_nan: int


def metrics_of(table: pd.DataFrame) -> list[str]:
    """The columns of a report's table that hold scores."""
    return [name for name in table.columns if table[name].dtype.kind == "f" and name not in _NOT_METRICS]


def means_by_group(table: pd.DataFrame, group: Sequence[str | None]) -> pd.DataFrame:
    """Columns predictor, group, metric, mean, num_values, num_nan; ``NO_GROUP`` where ``group`` is None.

    Predictors keep their order, groups are sorted with ``NO_GROUP`` last; a mean of no value is NaN.
    """
    named = table.assign(group=[NO_GROUP if name is None else name for name in group])
    rows = [
        (predictor, name, metric, *mean_ignoring_nan(part[metric].to_numpy()))
        for predictor in dict.fromkeys(table["predictor"])
        for name, part in sorted(
            named[named["predictor"] == predictor].groupby("group"),
            key=lambda item: (item[0] == NO_GROUP, item[0]),
        )
        for metric in metrics_of(table)
    ]
    columns = ["predictor", "group", "metric", "mean", "num_values", "num_nan"]
    return pd.DataFrame(rows, columns=columns).astype({"mean": float, "num_values": int, "num_nan": int})


def group_intervals(
    table: pd.DataFrame, by: str, metrics: Sequence[str], bootstrap: Bootstrap
) -> tuple[GroupMean, ...]:
    """Means and intervals of ``metrics`` by the groups in column ``by``, ordered as ``means_by_group``.

    Every predictor must have the same units; all see the same resampled perturbations.
    """
    predictors = list(dict.fromkeys(table["predictor"]))
    ends: dict[tuple[str, str, str], Interval] = {}
    groups = sorted(set(table[by]), key=lambda name: (name == NO_GROUP, name))
    columns = [(predictor, metric) for predictor in predictors for metric in metrics]
    values: dict[tuple[str, str, str], NDArray[np.float64]] = {}
    for group in groups:
        part = table[table[by] == group].set_index(["perturbation", "cell_line"])
        parts = {name: own.sort_index() for name, own in part.groupby("predictor")}
        values_UM = np.stack([parts[name][metric].to_numpy(float) for name, metric in columns], axis=1)
        unit = pd.factorize(parts[predictors[0]].index.get_level_values("perturbation"))[0]
        for column, (place, found) in enumerate(
            zip(columns, bootstrap_means(values_UM, unit, bootstrap), strict=True)
        ):
            ends[group, *place], values[group, *place] = found, values_UM[:, column]
    keys = [(group, name, metric) for name in predictors for group in groups for metric in metrics]
    means = {key: mean_ignoring_nan(values[key]) for key in keys}
    return tuple(
        GroupMean(key[1], key[0], key[2], means[key].mean, *ends[key], *means[key][1:]) for key in keys
    )
