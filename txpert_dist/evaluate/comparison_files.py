"""The folder that a comparison of models becomes.

Enters: a ``Compared``. Leaves: ``compare.html``, ``compare.md``, ``compare.json`` and the joined table as
parquet. Invariants: the folder appears complete or not at all; every number of the pages is in the JSON or
the table; null where undefined.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from txpert_dist import __version__
from txpert_dist.evaluate.compare import SAME, Compared
from txpert_dist.evaluate.figures import label
from txpert_dist.evaluate.folder import replace_folder
from txpert_dist.evaluate.groups import group_intervals
from txpert_dist.evaluate.html.compare import to_html
from txpert_dist.evaluate.markdown import score_table, with_interval
from txpert_dist.evaluate.report import TABLE_FILE, comparison_json, summary_json
from txpert_dist.evaluate.scores import HEADLINE, METRICS

SCHEMA = 1
JSON_FILE = "compare.json"
HTML_FILE = "compare.html"
MARKDOWN_FILE = "compare.md"


def to_json(found: Compared) -> dict[str, Any]:
    """The comparison without its table, as JSON-ready values."""
    first = found.reports[0].content["provenance"]
    origin = ("run", "model_hash", "snapshot_id", "git_commit", "version")
    return {
        "schema": SCHEMA,
        "version": __version__,
        "reports": [
            {"label": report.label, "folder": str(report.folder)}
            | {key: report.content["provenance"][key] for key in origin}
            for report in found.reports
        ],
        "provenance": {key: first[key] for key in ("store", *SAME, "num_genes")},
        "metrics": {name: metric._asdict() for name, metric in METRICS.items()},
        "headline": list(HEADLINE),
        "rows": [summary_json(row) for row in found.rows],
        "differences": [comparison_json(difference) for difference in found.differences],
        "groups": [row._asdict() for row in group_intervals(found.table, "task", HEADLINE, found.bootstrap)],
        "bootstrap": {**found.bootstrap._asdict(), "over": "perturbations"},
    }


def write_comparison(found: Compared, folder: Path) -> None:
    """Write the comparison into ``folder``, replacing an earlier one there.

    Raises ``InputError`` when the folder holds anything but a comparison.
    """
    replace_folder(folder, lambda fresh: _write_files(found, fresh), mark=JSON_FILE, what="not a comparison")


def to_markdown(content: Mapping[str, Any]) -> str:
    """One page: scores, paired differences, what was compared."""
    differences = [
        f"- {_code(row['name'])} minus {_code(row['against'])}: {with_interval(gain['mean'], gain)}, better "
        f"in {gain['num_better']:,} of {gain['num_values']:,}"
        for row in content["differences"]
        if (gain := row["metrics"]["pearson_delta"])["num_values"]
    ]
    level = f"{content['bootstrap']['level']:.0%}"
    sections = [
        f"# {len(content['reports'])} models on the {content['provenance']['split']} split",
        score_table(content["rows"], content["metrics"], content["headline"]),
        f"Mean and {level} bootstrap interval over perturbations.",
        "\n".join(["## Pearson delta, the same perturbations compared", "", *differences]),
        "\n".join(
            ["## Reports", "", *(f"- {_code(row['label'])}: {row['folder']}" for row in content["reports"])]
        ),
        "\n".join(
            ["## On", "", *(f"- {label(key)}: {value}" for key, value in content["provenance"].items())]
        ),
    ]
    return "\n\n".join(sections) + "\n"


def _write_files(found: Compared, folder: Path) -> None:
    content = to_json(found)
    text = json.dumps(content, indent=2, allow_nan=False)
    (folder / JSON_FILE).write_text(text + "\n", encoding="utf-8")
    (folder / MARKDOWN_FILE).write_text(to_markdown(content), encoding="utf-8")
    found.table.to_parquet(folder / TABLE_FILE, index=False)
    (folder / HTML_FILE).write_text(to_html(content, found.table, found.models), encoding="utf-8")


def _code(name: str) -> str:
    return f"`{name}`"
