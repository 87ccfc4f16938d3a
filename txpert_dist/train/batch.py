"""From the loader's compact minibatch to dense tensors on the training device.

Enters: a ``Minibatch`` and the resident control table. Leaves: ``DenseBatch``. Invariants: counts travel
compactly, all of a minibatch in one copy that the host does not wait for; normalising and densifying happen
on the device that trains, on a CPU by the compiled kernels of the store.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from txpert_dist.loader.memory import ReusedMemory
from txpert_dist.loader.pairing import ControlTable
from txpert_dist.minibatch import Minibatch, SparseRows
from txpert_dist.model.expression import dense_expression
from txpert_dist.store.expression import InputScale, dense_log1p

_SLOTS = 3
"""Minibatches whose copies may be under way at once."""
_ALIGNMENT = 64

_AS_TENSOR = {
    np.dtype(np.uint8): torch.uint8,
    np.dtype(np.uint16): torch.int16,  # the same bits: torch cannot index unsigned integers above eight bits
    np.dtype(np.uint32): torch.int32,  # counts below 2**31 keep their value
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.float32): torch.float32,
}


class DenseBatch(NamedTuple):
    """One rank's share of a step, on its device."""

    control_BN: Tensor
    """What the basal encoder reads: the controls' expression, or their embedding."""
    observed_BG: Tensor
    perturbations_BM: Tensor
    """Node numbers, -1 where there is none."""


class SparseCells(NamedTuple):
    """``SparseRows`` as tensors of one device; int16 holds the bits of uint16."""

    indptr: Tensor
    gene: Tensor
    value: Tensor
    library_size: Tensor


class Staging:
    """Host memory that minibatches leave from, page-locked for a GPU and used in turns."""

    def __init__(self, device: torch.device) -> None:
        """For copies to ``device``."""
        self._device = device
        self._slots: list[tuple[Tensor, Any]] = [(torch.empty(0, dtype=torch.uint8), None)] * _SLOTS
        self._turn = 0

    def copy(self, arrays: Sequence[NDArray[Any]]) -> list[Tensor]:
        """The ``arrays`` on the device, in one copy that the host does not wait for."""
        size = [-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in arrays]
        begin = np.concatenate([[0], np.cumsum(size)]).tolist()
        host = self._next_slot(begin[-1])
        for array, first in zip(arrays, begin, strict=False):
            host[first : first + array.nbytes].numpy()[:] = (
                np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            )
        there = host[: begin[-1]].to(self._device, non_blocking=True, copy=True)
        if self._device.type == "cuda":
            left = torch.cuda.Event()  # type: ignore[no-untyped-call]
            left.record(torch.cuda.current_stream(self._device))
            self._slots[self._turn] = (host, left)
        return [
            there[first : first + array.nbytes].view(_AS_TENSOR[array.dtype]).view(array.shape)
            for array, first in zip(arrays, begin, strict=False)
        ]

    def _next_slot(self, size: int) -> Tensor:
        self._turn = (self._turn + 1) % _SLOTS
        host, left = self._slots[self._turn]
        if left is not None:
            left.synchronize()  # long done: other minibatches have left since
        if len(host) < size:
            host = torch.empty(size * 5 // 4, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
            self._slots[self._turn] = (host, None)
        return host


class Controls(NamedTuple):
    """The control table where the model is: dense rows (means, embeddings), or control cells, sparse."""

    dense_RN: Tensor | None
    cells: SparseRows | SparseCells | None
    """On a CPU the table's own arrays, which workers of a node may share."""
    input_scale: InputScale
    num_genes: int
    staging: Staging
    memory: ReusedMemory
    """For the dense rows of a CPU."""


def resident_controls(table: ControlTable, *, num_genes: int, device: torch.device) -> Controls:
    """Put the control table onto ``device``, once a run."""
    staging = Staging(device)
    dense_RN = None if table.dense_RN is None else _tensor(table.dense_RN).to(device)
    cells: SparseRows | SparseCells | None = table.cells
    if table.cells is not None and device.type != "cpu":
        cells = SparseCells(*(_tensor(field).to(device) for field in table.cells))
    return Controls(dense_RN, cells, table.input_scale, num_genes, staging, ReusedMemory())


def control_rows(controls: Controls, rows: Tensor) -> Tensor:
    """control_BN of the rows ``rows`` of the control table, on its device; expression on the log1p scale."""
    if controls.dense_RN is not None:
        out_BN = (
            _memory(controls, len(rows), controls.dense_RN.shape[1]) if rows.device.type == "cpu" else None
        )
        return torch.index_select(controls.dense_RN, 0, rows, out=out_BN)
    if isinstance(controls.cells, SparseRows):
        return _dense_on_cpu(controls.cells, controls, rows.numpy())
    if controls.cells is not None:
        return _dense(_rows(controls.cells, rows), controls)
    raise ValueError("a control table holds dense rows or cells")


def dense_batch(minibatch: Minibatch, controls: Controls, *, device: torch.device) -> DenseBatch:
    """Controls, observations (B, G) on the log1p scale, and the perturbed nodes, on ``device``.

    On a CPU, memory of earlier minibatches that nobody kept is used again.
    """
    if device.type == "cpu":
        return DenseBatch(
            control_rows(controls, torch.from_numpy(minibatch.control)),
            _dense_on_cpu(minibatch.cells, controls, None),
            torch.from_numpy(minibatch.perturbations_BM),
        )
    control, perturbations_BM, *cells = controls.staging.copy(
        [minibatch.control, minibatch.perturbations_BM, *minibatch.cells]
    )
    observed_BG = _dense(SparseCells(*cells), controls)
    return DenseBatch(control_rows(controls, control), observed_BG, perturbations_BM)


def _dense_on_cpu(cells: SparseRows, controls: Controls, rows: NDArray[np.int64] | None) -> Tensor:
    y_BG = _memory(controls, cells.num_cells if rows is None else len(rows), controls.num_genes)
    dense_log1p(cells, y_BG.numpy(), which=rows, input_scale=controls.input_scale)
    return y_BG


def _memory(controls: Controls, num_rows: int, width: int) -> Tensor:
    return torch.from_numpy(controls.memory.lend((num_rows, width), np.float32))


def _dense(cells: SparseCells, controls: Controls) -> Tensor:
    indptr, gene, value, library_size = cells
    return dense_expression(
        indptr,
        _wide(gene),
        _wide(value),
        library_size,
        num_genes=controls.num_genes,
        input_scale=controls.input_scale,
    )


def _rows(cells: SparseCells, rows: Tensor) -> SparseCells:
    start, stop = cells.indptr[rows], cells.indptr[rows + 1]
    indptr = torch.cat([start.new_zeros(1), (stop - start).cumsum(0)])
    entry = torch.repeat_interleave(start - indptr[:-1], stop - start)
    entry += torch.arange(len(entry), device=entry.device)
    return SparseCells(indptr, cells.gene[entry], cells.value[entry], cells.library_size[rows])


def _wide(numbers: Tensor) -> Tensor:
    """The unsigned numbers that int16 holds the bits of; others as they are."""
    return numbers.to(torch.int32).bitwise_and_(0xFFFF) if numbers.dtype == torch.int16 else numbers


def _tensor(array: NDArray[Any]) -> Tensor:
    """The same memory as a tensor, where it is contiguous."""
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return torch.from_numpy(flat).view(_AS_TENSOR[array.dtype]).view(array.shape)
