"""The folder that an understanding of a screen becomes.

Enters: an ``Understanding``. Leaves: ``understand.json``, ``understand.md``, parquet tables and PNG figures.
Invariants: the folder appears complete or not at all; every number of the page is in the JSON; null where
undefined.
"""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from txpert_dist.evaluate.folder import replace_folder
from txpert_dist.evaluate.understand import contexts, selection
from txpert_dist.evaluate.understand.figures import draw_figures
from txpert_dist.evaluate.understand.page import to_markdown
from txpert_dist.evaluate.understand.run import Enriched, Understanding

SCHEMA = 1
JSON_FILE = "understand.json"
MARKDOWN_FILE = "understand.md"
TOP = 10
"""Genes and terms that the page names, by direction."""
SIGNIFICANT = 0.05


def to_json(found: Understanding) -> dict[str, Any]:
    """The understanding as JSON-ready values, its long tables summarised."""
    up = found.meta["delta"] > found.threshold
    down = found.meta["delta"] < -found.threshold
    return {
        "schema": SCHEMA,
        "provenance": found.provenance,
        "contexts": {"kinds": contexts.KINDS, "rows": _records(contexts.summarise(found.contexts))},
        "meta_baseline": {
            "threshold": found.threshold,
            "up": int(up.sum()),
            "down": int(down.sum()),
            "top_up": found.meta[up]["gene"].head(TOP).tolist(),
            "top_down": found.meta[down]["gene"].head(TOP).tolist(),
        },
        "enrichment": None if found.enriched is None else _enriched(found.enriched),
        "metric_selection": {
            "contexts": found.context_kind,
            "pairs": len(found.ranks[["first", "second"]].drop_duplicates()),
            "quantile": selection.QUANTILE,
            "rows": _records(selection.summarise(found.ranks)),
        },
        "tiers": None
        if found.tiers is None
        else {
            "perturbations": found.tiers.perturbations,
            "rows": None if found.tiers.table is None else _records(found.tiers.table),
        },
    }


def write_understanding(found: Understanding, folder: Path) -> None:
    """Write the understanding into ``folder``, replacing an earlier one there.

    Raises ``InputError`` when the folder holds anything else.
    """
    replace_folder(
        folder, lambda fresh: _write_files(found, fresh), mark=JSON_FILE, what="no understanding of a screen"
    )


def _write_files(found: Understanding, folder: Path) -> None:
    content = to_json(found)
    figures = draw_figures(found, folder)
    text = json.dumps(content, indent=2, allow_nan=False)
    (folder / JSON_FILE).write_text(text + "\n", encoding="utf-8")
    (folder / MARKDOWN_FILE).write_text(to_markdown(content, figures), encoding="utf-8")
    for name, table in _tables(found).items():
        table.to_parquet(folder / f"{name}.parquet", index=False)


def _tables(found: Understanding) -> dict[str, pd.DataFrame]:
    tables = {"contexts": found.contexts, "meta_baseline": found.meta, "metric_selection": found.ranks}
    if found.enriched is not None:
        tables["enrichment"] = found.enriched.table
    if found.tiers is not None and found.tiers.table is not None:
        tables["tiers"] = found.tiers.table
    return tables


def _enriched(enriched: Enriched) -> dict[str, Any]:
    table = enriched.table
    chosen = table[table["enriched"] & (table["p_fdr_bh"] < SIGNIFICANT)]
    top = chosen.groupby("direction", sort=False).head(TOP)
    return {
        "ontology": enriched.version,
        "annotations": enriched.annotations,
        "significant": {name: int((chosen["direction"] == name).sum()) for name in ("up", "down")},
        "top": _records(top.drop(columns=["genes", "enriched"])),
    }


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): _plain(value) for key, value in row.items()} for row in table.to_dict("records")]


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
