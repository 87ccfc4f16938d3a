"""How good the shuffle is, against a full one: variance of minibatch means, labels within minibatches, pairs.

Three measures, each over several epochs, of cells whose values depend on batch and perturbation as in a
screen. *Inflation*: variance of the minibatches' mean over that of minibatches drawn without replacement,
1 when they cannot be told apart. *Autocorrelation*: how much likelier two cells of a minibatch have the same
label. *Pairs*: how much likelier two neighbours of the store meet in a minibatch than any two cells.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from txpert_dist.loader.plan import plan_epoch

NUM_CELLS, MINIBATCH, EPOCHS, FEATURES = 40_000, 64, 4, 24
NUM_BATCHES, NUM_PERTURBATIONS = 40, 400

Order = Callable[[int], NDArray[np.int64]]
"""The order of an epoch: positions in the store."""


def screen(kind: str) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Batch, perturbation and features of every cell, in the order of the store."""
    rng = np.random.default_rng(0)
    batch = np.sort(rng.integers(0, NUM_BATCHES, NUM_CELLS))
    perturbation = rng.integers(0, NUM_PERTURBATIONS, NUM_CELLS)
    shape = (NUM_CELLS, FEATURES)
    value = rng.normal(size=shape) + rng.normal(size=(NUM_BATCHES, FEATURES))[batch]
    value += 0.5 * rng.normal(size=(NUM_PERTURBATIONS, FEATURES))[perturbation]
    order = {
        "shuffled": rng.permutation(NUM_CELLS),
        "by batch": np.arange(NUM_CELLS),
        "by perturbation": np.lexsort((batch, perturbation)),
    }[kind]
    return batch[order], perturbation[order], value[order]


def planned(chunk: int, window: int) -> Order:
    sizes = {"chunk": chunk, "window": window, "minibatch_size": MINIBATCH}
    return lambda epoch: plan_epoch(NUM_CELLS, **sizes, seed=1, epoch=epoch).order


def full(epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng((9, epoch)).permutation(NUM_CELLS)


def buffered(epoch: int) -> NDArray[np.int64]:
    """What a shuffle buffer of 1,024 cells makes of the store's order (webdataset, Ray's local shuffle)."""
    rng = np.random.default_rng((8, epoch))
    buffer, result = list(range(1024)), []
    for cell in range(1024, NUM_CELLS):
        place = int(rng.integers(1024))
        result.append(buffer[place])
        buffer[place] = cell
    return np.array(result + buffer)


def minibatches(order: Order) -> Iterator[NDArray[np.int64]]:
    for epoch in range(EPOCHS):
        yield order(epoch)[: NUM_CELLS // MINIBATCH * MINIBATCH].reshape(-1, MINIBATCH)


def inflation(order: Order, value: NDArray[np.float64]) -> float:
    centred = value - value.mean(0)
    means = np.concatenate([centred[cells].mean(1) for cells in minibatches(order)])
    expected = centred.var(0) / MINIBATCH * (NUM_CELLS - MINIBATCH) / (NUM_CELLS - 1)
    return float(((means**2).mean(0) / expected).mean())


def autocorrelation(order: Order, label: NDArray[np.int64]) -> float:
    same = 0.0
    for cells in minibatches(order):
        labels = np.sort(label[cells], axis=1)
        starts = np.diff(labels, axis=1, prepend=-1) != 0
        length = np.diff(np.append(np.flatnonzero(starts.ravel()), starts.size))
        same += (length * (length - 1)).sum() / (labels.size * (MINIBATCH - 1)) / EPOCHS
    total = np.bincount(label)
    return float(same / ((total * (total - 1)).sum() / (NUM_CELLS * (NUM_CELLS - 1))))


def neighbours(order: Order) -> float:
    """Over distances below 32."""
    together = 0.0
    for epoch in range(EPOCHS):
        place = np.argsort(order(epoch)) // MINIBATCH
        together += sum(float((place[d:] == place[:-d]).mean()) for d in range(1, 32)) / 31 / EPOCHS
    return together / ((MINIBATCH - 1) / (NUM_CELLS - 1))


# 624 minibatches, 4 epochs, 24 features: two standard errors of the inflation of a full shuffle
NOISE = 2 * np.sqrt(2 / (NUM_CELLS // MINIBATCH * EPOCHS * FEATURES))
DEFAULT, LONG_READS = (256, 64), (1024, 16)


@pytest.mark.parametrize("sizes", [DEFAULT, LONG_READS, (256, 8)])
def test_a_shuffled_store_is_served_as_by_a_full_shuffle(sizes: tuple[int, int]) -> None:
    batch, perturbation, value = screen("shuffled")
    assert abs(inflation(full, value) - 1) < 2 * NOISE
    assert abs(inflation(planned(*sizes), value) - 1) < 2 * NOISE
    # a label of 100 cells comes twice in a minibatch 5 times in 1,000: the bound is four standard errors
    assert abs(autocorrelation(planned(*sizes), batch) - 1) < 0.02
    assert abs(autocorrelation(planned(*sizes), perturbation) - 1) < 0.06


@pytest.mark.parametrize("kind", ["by batch", "by perturbation"])
def test_a_sorted_store_costs_what_the_window_leaves(kind: str) -> None:
    batch, perturbation, value = screen(kind)
    label = batch if kind == "by batch" else perturbation
    assert inflation(planned(*DEFAULT), value) < 1.1
    assert autocorrelation(planned(*DEFAULT), label) < 1.25


def test_neighbours_of_the_store_meet_little_more_often_than_in_their_window() -> None:
    """A window of 16,384 of 40,000 cells: 2.4 times as often as under a full shuffle, and not more."""
    assert 0.9 < neighbours(full) < 1.1
    assert neighbours(planned(*DEFAULT)) < 1.2 * NUM_CELLS / (256 * 64)


@pytest.mark.parametrize("order", [lambda _: np.arange(NUM_CELLS), buffered], ids=["none", "buffer"])
def test_the_measures_see_a_bad_shuffle(order: Order) -> None:
    batch, _, value = screen("by batch")
    assert inflation(order, value) > 5
    assert autocorrelation(order, batch) > 5
    assert neighbours(order) > 5
