"""Mean scores of groups of perturbations: tasks, knowledge tiers, or any other.

Enters: the table of a report (one row for each perturbation, cell line and predictor) and the group of every
row. Leaves: one row for each predictor, group and metric. Invariant: units without a group and values that
are undefined are counted, never dropped without a word.
"""

from collections.abc import Sequence

import pandas as pd

from txpert_dist.metrics.aggregate import mean_ignoring_nan

NO_GROUP = "none"
_NOT_METRICS = frozenset(("num_cells", "num_batches"))


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
