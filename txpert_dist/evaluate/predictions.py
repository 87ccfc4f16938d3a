"""Predictions that another program made, as a predictor.

Enters: an h5ad with one row for each predicted cell or mean profile: obs ``perturbation``, ``cell_line`` (may
be left out when the store has one) and, if it has them, ``batch``; X on the scale
log1p(4000 x count / library size). Leaves: a predictor. Invariants: genes are matched by name and
perturbations by their canonical name; rows of the same (perturbation, cell line, batch) are averaged; what is
missing or not known is an error or counted, never filled in.

Without batches, a prediction that comes with its own control rows counts as a change from these, added to the
control mean of each batch; without control rows it is taken as the expression itself.
"""

from pathlib import Path
from typing import Any, NamedTuple

import anndata
import numpy as np
import pandas as pd
import scipy.sparse
from numpy.typing import NDArray

from txpert_dist.errors import InputError
from txpert_dist.evaluate.report import Exclusion
from txpert_dist.ingest.labels import canonical_perturbation, listing
from txpert_dist.loader.conditions import cell_lines, perturbed_rows
from txpert_dist.store.cells import CellStore

_ROWS_AT_ONCE = 4096
_SCALE = (0.4, 2.5)
"""Total expression of the predicted profiles, over that of the store's controls: beyond, another scale."""


class FilePredictor(NamedTuple):
    """Means of a file's predictions, by (perturbation, context)."""

    expression_RG: NDArray[np.float32]
    row_of: dict[tuple[int, int], int]
    """(perturbation code, context code) -> row."""
    shift_CG: NDArray[np.float64]
    """(C, G) added to the predictions of each context."""
    name: str = "predictions"

    def predict(
        self, perturbation_R: NDArray[np.int32], context_R: NDArray[np.int32]
    ) -> NDArray[np.floating]:
        """(R, G) mean prediction of each condition; NaN where the file has none."""
        pairs = zip(perturbation_R.tolist(), context_R.tolist(), strict=True)
        rows = np.array([self.row_of.get(pair, -1) for pair in pairs], np.int64)
        found_RG = self.expression_RG[np.maximum(rows, 0)].astype(np.float64) + self.shift_CG[context_R]
        return np.where((rows < 0)[:, None], np.nan, found_RG)


class Predictions(NamedTuple):
    """What a file of predictions came to."""

    predictor: FilePredictor
    exclusions: tuple[Exclusion, ...]


def genes_in_file(path: Path, store: CellStore) -> NDArray[np.int64]:
    """Gene numbers of the store's genes that the file predicts; ``InputError`` when there are none."""
    there = set(_open(path).var_names)
    genes = np.flatnonzero([gene in there for gene in store.genes]).astype(np.int64)
    if not len(genes):
        raise InputError(
            f"{path}: none of its {len(there)} genes ({listing(sorted(there), 3)}) is one of {store.path} "
            f"({listing(store.genes, 3)}); make var_names the store's names"
        )
    return genes


def read_predictions(
    path: Path,
    store: CellStore,
    *,
    split: str,
    genes: NDArray[np.int64],
    held_out_cell_lines: tuple[str, ...] = (),
    allow_missing: bool = False,
) -> Predictions:
    """The file's predictions over the view ``genes``, for the perturbations of ``split``.

    Raises ``InputError`` for genes, columns, perturbations or numbers that do not fit the store, and, unless
    ``allow_missing``, for a perturbation of the split that the file does not predict.
    """
    data = _open(path)
    columns = _gene_columns(path, data, store, genes)
    labels = _labels(path, data, store)
    unknown = labels["perturbation"] < 0
    _check_batches(path, labels, store)
    key = labels.loc[~unknown, ["perturbation", "cell_line", "batch"]]
    group_R = np.full(len(labels), -1, np.int64)
    group_R[~unknown.to_numpy()] = key.groupby(list(key.columns), sort=True).ngroup().to_numpy()
    keys = key.drop_duplicates().sort_values(list(key.columns)).to_numpy()
    mean_KG = _means(path, data.X, columns, group_R, len(keys))
    _check_scale(path, mean_KG, store, genes)
    predictor = _predictor(mean_KG, keys, store, genes)
    exclusions = [
        *_unknown(labels, unknown),
        *_missing(path, predictor, store, split, held_out_cell_lines, allow_missing=allow_missing),
    ]
    return Predictions(predictor, tuple(exclusions))


def _open(path: Path) -> anndata.AnnData:
    try:
        data = anndata.read_h5ad(path, backed="r")
    except Exception as error:  # noqa: BLE001  anndata and h5py raise many kinds for what is no h5ad
        raise InputError(f"{path}: cannot be read as h5ad ({error}); give the file of predictions") from None
    if not data.n_obs or data.X is None:
        raise InputError(f"{path}: holds no predictions in X; write one row for each cell or mean profile")
    return data


def _gene_columns(
    path: Path, data: anndata.AnnData, store: CellStore, genes: NDArray[np.int64]
) -> NDArray[np.int64]:
    if not data.var_names.is_unique:
        twice = data.var_names[data.var_names.duplicated()][0]
        raise InputError(f"{path}: gene {twice!r} occurs more than once in var_names; make them unique")
    column = {name: i for i, name in enumerate(data.var_names)}
    names = [store.genes[number] for number in genes]
    missing = [name for name in names if name not in column]
    if missing:
        raise InputError(
            f"{path}: lacks {len(missing)} of the {len(names)} genes to score ({listing(missing)}); predict "
            "them too, or score the genes that the file has with --genes file"
        )
    return np.array([column[name] for name in names], np.int64)


def _labels(path: Path, data: anndata.AnnData, store: CellStore) -> pd.DataFrame:
    """Codes of perturbation (-1 unknown), cell line, and context (-1 without batches) of every row."""
    obs, lines = data.obs, cell_lines(store)
    if "perturbation" not in obs:
        raise InputError(
            f"{path}: obs has no column 'perturbation' (it has {listing(list(obs.columns))}); add one"
        )
    if "cell_line" not in obs and len(lines.names) > 1:
        raise InputError(
            f"{path}: obs has no column 'cell_line', and the store has {', '.join(lines.names)}; add one"
        )
    given = obs["perturbation"].astype(str)
    canonical = {label: _canonical(path, label) for label in given.unique()}
    code = {name: number for number, name in enumerate(store.perturbations)}
    line = obs["cell_line"].astype(str) if "cell_line" in obs else pd.Series(lines.names[0], index=obs.index)
    strange = sorted(set(line) - set(lines.names))
    if strange:
        raise InputError(f"{path}: cell line {strange[0]!r} is not the store's ({', '.join(lines.names)})")
    context = {tuple(place): number for number, place in enumerate(store.contexts)}
    batch = [-1] * len(obs)
    if "batch" in obs:
        places = zip(line, obs["batch"].astype(str), strict=True)
        batch = [context.get(place, -2) for place in places]
    return pd.DataFrame(
        {
            "label": given.to_numpy(),
            "perturbation": [code.get(canonical[label], -1) for label in given],
            "cell_line": [lines.names.index(name) for name in line],
            "batch": batch,
        }
    )


def _canonical(path: Path, label: str) -> str:
    try:
        return canonical_perturbation(label, control_label=None, separator=None)
    except ValueError as error:
        raise InputError(f"{path}: perturbation {label!r}: {error}; correct it") from None


def _check_batches(path: Path, labels: pd.DataFrame, store: CellStore) -> None:
    strange = int((labels["batch"] == -2).sum())
    if strange:
        some = ", ".join(f"{place.cell_line}/{place.batch}" for place in store.contexts[:4])
        raise InputError(
            f"{path}: {strange:,} rows are of batches that the store does not have in their cell line (it "
            f"has {some}, ...); correct obs batch, or leave the column out"
        )


def _means(
    path: Path, values: Any, columns: NDArray[np.int64], group_R: NDArray[np.int64], num_groups: int
) -> NDArray[np.float64]:
    sum_KG = np.zeros((num_groups, len(columns)))
    for start in range(0, len(group_R), _ROWS_AT_ONCE):
        group_B = group_R[start : start + _ROWS_AT_ONCE]
        block = values[start : start + _ROWS_AT_ONCE]
        block_BG = (block.toarray() if scipy.sparse.issparse(block) else np.asarray(block))[:, columns]
        kept = np.flatnonzero(group_B >= 0)
        if not np.isfinite(block_BG[kept]).all():
            row = start + int(kept[~np.isfinite(block_BG[kept]).all(1)][0])
            raise InputError(f"{path}: X has a value that is not finite (row {row} first); correct it")
        member = scipy.sparse.csr_array(
            (np.ones(len(kept)), (group_B[kept], kept)), shape=(num_groups, len(group_B))
        )
        sum_KG += member @ block_BG.astype(np.float64)
    number_K = np.bincount(group_R[group_R >= 0], minlength=num_groups)
    return np.asarray(sum_KG / number_K[:, None], np.float64)


def _check_scale(
    path: Path, mean_KG: NDArray[np.float64], store: CellStore, genes: NDArray[np.int64]
) -> None:
    """Refuse what is clearly on another scale; a shift of a few genes passes."""
    control = float(np.median(np.expm1(store.control_mean_CG[:, genes].astype(np.float64)).sum(1)))
    with np.errstate(over="ignore"):
        found = float(np.median(np.expm1(mean_KG).sum(1))) if len(mean_KG) else control
    if not _SCALE[0] * control <= found <= _SCALE[1] * control:
        raise InputError(
            f"{path}: its profiles sum to {found:,.4g} (as expm1), the store's controls to {control:,.4g}: "
            "another scale; write log1p(4000 x count / library size of all genes) into X"
        )


def _predictor(
    mean_KG: NDArray[np.float64], keys: NDArray[np.int64], store: CellStore, genes: NDArray[np.int64]
) -> FilePredictor:
    line_C = cell_lines(store).cell_line_C
    shift_CG = np.zeros((len(line_C), len(genes)))
    row_of: dict[tuple[int, int], int] = {}
    for row, (perturbation, line, batch) in enumerate(keys.tolist()):
        contexts = [batch] if batch >= 0 else np.flatnonzero(line_C == line).tolist()
        for context in contexts:
            row_of[perturbation, context] = row
            if batch < 0 and perturbation == 0:
                shift_CG[context] = store.control_mean_CG[context, genes] - mean_KG[row]
    return FilePredictor(mean_KG.astype(np.float32), row_of, shift_CG)


def _unknown(labels: pd.DataFrame, unknown: "pd.Series[bool]") -> list[Exclusion]:
    if not unknown.any():
        return []
    names = sorted(set(labels.loc[unknown, "label"]))
    why = f"the store does not have these perturbations ({listing(names)})"
    return [Exclusion("predicted rows", int(unknown.sum()), why)]


def _missing(
    path: Path,
    predictor: FilePredictor,
    store: CellStore,
    split: str,
    held_out_cell_lines: tuple[str, ...],
    *,
    allow_missing: bool,
) -> list[Exclusion]:
    lines = cell_lines(store)
    rows = perturbed_rows(store, split)
    pairs = np.unique(np.stack([store.perturbation[rows], store.context[rows]]), axis=1).T.tolist()
    wanted = [
        (perturbation, context)
        for perturbation, context in pairs
        if not held_out_cell_lines or lines.names[lines.cell_line_C[context]] in held_out_cell_lines
    ]
    lacking = [pair for pair in wanted if pair not in predictor.row_of]
    if not lacking:
        return []
    names = sorted({store.perturbations[perturbation] for perturbation, _ in lacking})
    if len(lacking) == len(wanted) or not allow_missing:
        raise InputError(
            f"{path}: predicts {len(wanted) - len(lacking):,} of the {len(wanted):,} (perturbation, cell "
            f"line, batch) of the {split} split; it lacks {listing(names)}; predict them all, or count them "
            "as undefined with --allow-missing"
        )
    why = f"not predicted, so undefined in every metric of the model ({listing(names)})"
    return [Exclusion("conditions", len(lacking), why)]
