"""STRING's combined score of a pair from the scores of its channels.

Enters: scores of channels, 0 to 1000. Leaves: combined scores, 0 to 999. The rule is STRING's own (help page
"How are the scores computed?" and its script combine_subscores.py): take the prior of 0.041 out of every
channel, multiply the chances of each being wrong, put the prior back once, cut off after three digits. The
help page, and the script up to release 11.5, first multiply the co-occurrence and text-mining channels by
1 - homology; adaptations of the script "for v12 and up" do not. Here both can be had.

Invariant: the same operations in the same order as published, so the digits are the same.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

CHANNELS = ("neighborhood", "fusion", "cooccurence", "coexpression", "experiments", "database", "textmining")
TRANSFERRED = "_transferred"
"""Ending of the column of what a channel has from other organisms."""
HOMOLOGY = "homology"
PRIOR = 0.041
MAX_SCORE = 1000
_CORRECTED = ("cooccurence", "textmining")


def combine(score_E: Mapping[str, NDArray[np.float32]], *, homology: bool) -> NDArray[np.float32]:
    """(E,) combined scores of the columns given, by name; columns that are absent count as 0.

    ``homology``: correct for the column of that name. A pair that no channel supports beyond chance has 0.
    """
    wrong_E: NDArray[np.float64] | None = None
    for channel in CHANNELS:
        columns = [score_E[name] for name in (channel, channel + TRANSFERRED) if name in score_E]
        if not columns:
            continue
        right_E = _without_prior(columns[0])
        for transferred in columns[1:]:
            right_E = 1.0 - (1.0 - right_E) * (1.0 - _without_prior(transferred))
        if homology and channel in _CORRECTED:
            right_E = right_E * (1.0 - score_E[HOMOLOGY].astype(np.float64) / MAX_SCORE)
        wrong_E = 1.0 - right_E if wrong_E is None else wrong_E * (1.0 - right_E)
    if wrong_E is None:
        return np.zeros(len(next(iter(score_E.values()), ())), np.float32)
    combined_E = np.floor(((1.0 - wrong_E) * (1.0 - PRIOR) + PRIOR) * MAX_SCORE)
    return np.where(wrong_E < 1.0, combined_E, 0.0).astype(np.float32)


def _without_prior(score: NDArray[np.float32]) -> NDArray[np.float64]:
    chance = np.maximum(score.astype(np.float64) / MAX_SCORE, PRIOR)
    return (chance - PRIOR) / (1.0 - PRIOR)
