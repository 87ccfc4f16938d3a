"""From the loader's compact minibatch to dense tensors on the training device.

Enters: a ``Minibatch`` and the resident control table. Leaves: ``DenseBatch``. Invariant: counts travel
compactly; normalising and densifying happen on the device that trains.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from txpert_dist.loader.pairing import ControlTable
from txpert_dist.minibatch import Minibatch, SparseRows
from txpert_dist.model.expression import dense_expression
from txpert_dist.store.expression import InputScale


class DenseBatch(NamedTuple):
    """One rank's share of a step, on its device."""

    control_BN: Tensor
    """What the basal encoder reads: the controls' expression, or their embedding."""
    observed_BG: Tensor
    perturbations_BM: Tensor
    """Node numbers, -1 where there is none."""


class SparseCells(NamedTuple):
    """``SparseRows`` as tensors of one device."""

    indptr: Tensor
    gene: Tensor
    value: Tensor
    library_size: Tensor


class Controls(NamedTuple):
    """The control table on the device: dense rows (means, embeddings), or control cells, sparse."""

    dense_RN: Tensor | None
    cells: SparseCells | None
    input_scale: InputScale
    num_genes: int


def resident_controls(table: ControlTable, *, num_genes: int, device: torch.device) -> Controls:
    """Put the control table onto ``device``, once a run."""
    dense_RN = (
        None if table.dense_RN is None else torch.from_numpy(np.ascontiguousarray(table.dense_RN)).to(device)
    )
    cells = None if table.cells is None else _on_device(table.cells, device)
    return Controls(dense_RN, cells, table.input_scale, num_genes)


def control_rows(controls: Controls, rows: Tensor) -> Tensor:
    """control_BN of the rows ``rows`` of the control table, on its device; expression on the log1p scale."""
    if controls.dense_RN is not None:
        return controls.dense_RN.index_select(0, rows)
    if controls.cells is not None:
        return _dense(_rows(controls.cells, rows), controls)
    raise ValueError("a control table holds dense rows or cells")


def dense_batch(minibatch: Minibatch, controls: Controls, *, device: torch.device) -> DenseBatch:
    """Controls, observations (B, G) on the log1p scale, and the perturbed nodes, on ``device``."""
    return DenseBatch(
        control_rows(controls, torch.from_numpy(minibatch.control).to(device)),
        _dense(_on_device(minibatch.cells, device), controls),
        torch.from_numpy(minibatch.perturbations_BM).to(device),
    )


def _dense(cells: SparseCells, controls: Controls) -> Tensor:
    return dense_expression(*cells, num_genes=controls.num_genes, input_scale=controls.input_scale)


def _rows(cells: SparseCells, rows: Tensor) -> SparseCells:
    start, stop = cells.indptr[rows], cells.indptr[rows + 1]
    indptr = torch.cat([start.new_zeros(1), (stop - start).cumsum(0)])
    entry = torch.repeat_interleave(start - indptr[:-1], stop - start)
    entry += torch.arange(len(entry), device=entry.device)
    return SparseCells(indptr, cells.gene[entry], cells.value[entry], cells.library_size[rows])


def _on_device(cells: SparseRows, device: torch.device) -> SparseCells:
    return SparseCells(
        *(_tensor(field).to(device) for field in (cells.indptr, cells.gene, cells.value, cells.library_size))
    )


def _tensor(array: NDArray[np.generic]) -> Tensor:
    # torch cannot index unsigned integers above eight bits; counts below 2**31 keep their value
    wide = array.astype(np.int32) if array.dtype in (np.uint16, np.uint32) else array
    return torch.from_numpy(np.ascontiguousarray(wide))
