"""Do genes change the way they were predicted to?

Enters: predicted and observed deltas. Leaves: one share per row. Invariant: a row without any predicted, or
any observed, change has no directions and gives NaN.
"""

import numpy as np
from numpy.typing import NDArray


def direction_accuracy(
    predicted_PG: NDArray[np.floating], observed_PG: NDArray[np.floating]
) -> NDArray[np.float64]:
    """(P,) share of the genes with an observed change whose predicted change has the same sign.

    A gene that is predicted not to change counts as wrong.
    """
    moved_PG = observed_PG != 0
    right_P = (moved_PG & (np.sign(predicted_PG) == np.sign(observed_PG))).sum(1)
    number_P = moved_PG.sum(1)
    finite_P = np.isfinite(predicted_PG).all(1) & np.isfinite(observed_PG).all(1)
    defined_P = finite_P & (number_P > 0) & (predicted_PG != 0).any(1)
    return np.where(defined_P, right_P / np.maximum(number_P, 1), np.nan)
