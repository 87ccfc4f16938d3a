"""The learning rate of every optimiser step, as a pure function.

Enters: the number of a step (from 0). Leaves: the factor on the peak learning rate. Invariant: the factor
depends on the step and the length of the run only, so a resumed run continues on the same curve.
"""

import math
from collections.abc import Callable

from txpert_dist.config import Optimiser


def warmup_steps(num_steps: int, warmup_fraction: float) -> int:
    """Number of steps over which the learning rate rises."""
    return round(warmup_fraction * num_steps)


def learning_rate_factor(step: int, *, num_steps: int, num_warmup: int, floor: float) -> float:
    """Factor on the peak learning rate at ``step`` of ``num_steps``.

    Rises linearly, (step + 1) / num_warmup, over the first ``num_warmup`` steps; afterwards falls from 1 to
    ``floor`` along half a cosine (Loshchilov and Hutter 2017, without restarts), reaching it at
    ``num_steps``. Beyond the end it stays at ``floor``.
    """
    if step < num_warmup:
        return (step + 1) / num_warmup
    share = min(1.0, (step - num_warmup) / max(1, num_steps - num_warmup))
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * share))


def schedule(optimiser: Optimiser, *, num_steps: int, start_step: int = 0) -> Callable[[int], float]:
    """The factor as a function of the steps taken since ``start_step``, as ``LambdaLR`` wants it."""
    num_warmup = warmup_steps(num_steps, optimiser.warmup_fraction)
    floor = optimiser.minimum_learning_rate / optimiser.learning_rate

    def factor(steps_taken: int) -> float:
        return learning_rate_factor(
            start_step + steps_taken, num_steps=num_steps, num_warmup=num_warmup, floor=floor
        )

    return factor
