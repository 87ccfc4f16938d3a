"""Counts to dense expression, on the device that trains.

Enters: cells as compressed sparse rows, as stored. Leaves: y_BG, log1p(4000 count / library size).
Invariants: only stored entries are touched before the rows are made dense; no gradient; equal to
``txpert_dist.store.expression``.
"""

import torch
from torch import Tensor

from txpert_dist.store.expression import TARGET_SUM, InputScale


@torch.no_grad()
def dense_expression(
    indptr: Tensor,
    gene: Tensor,
    value: Tensor,
    library_size: Tensor,
    *,
    num_genes: int,
    input_scale: InputScale,
) -> Tensor:
    """y_BG in single precision, from the fields of ``SparseRows`` as tensors of one device.

    ``gene`` numbers lie below ``num_genes``, each once a cell. With ``input_scale`` "log1p" values are taken
    as they are.
    """
    num_cells = len(indptr) - 1
    cell = torch.repeat_interleave(
        torch.arange(num_cells, device=indptr.device), indptr.diff(), output_size=len(gene)
    )
    y_BG = torch.zeros(num_cells, num_genes, device=indptr.device)
    expression = value.to(torch.float32)
    if input_scale == "counts":
        scale_B = TARGET_SUM / library_size.to(torch.float32)
        expression = torch.log1p(expression * scale_B.index_select(0, cell))
    y_BG.view(-1).index_copy_(0, cell * num_genes + gene, expression)
    return y_BG
