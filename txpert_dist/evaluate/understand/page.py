"""The one-page reading of an understanding of a screen.

Enters: its JSON content and figure names. Leaves: Markdown. Invariant: every number is in the JSON.
"""

from collections.abc import Mapping, Sequence
from typing import Any

_METRICS = ("pearson_delta", "retrieval")
"""Those whose means by tier the page shows."""


def to_markdown(content: dict[str, Any], figures: Sequence[str]) -> str:
    """One page: contexts, mean response, test of the metrics, tiers, provenance, figures."""
    sections = [
        "# What the screen says, before any model",
        _contexts(content["contexts"]),
        _meta(content["meta_baseline"]),
        _enrichment(content["enrichment"]),
        _metrics(content["metric_selection"]),
        _tiers(content["tiers"]),
        "## Made from\n\n"
        + "\n".join(f"- {_words(key)}: {_plain(value)}" for key, value in content["provenance"].items()),
        *(f"![{_words(name.removesuffix('.png'))}]({name})" for name in figures),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _contexts(found: Mapping[str, Any]) -> str:
    rows = [
        [row["kind"], row["relation"], _number(row["mean"]), _number(row["median"]), *_counted(row)]
        for row in found["rows"]
    ]
    head = ["", "", "mean", "median", "pairs", "undefined"]
    return "\n\n".join(
        [
            "## Within and across contexts",
            "Pearson correlation over genes of two pseudobulks. Within a context it is what noise leaves; "
            "the gap to the row across is what the context changes.",
            _table(head, rows, texts=2),
            "\n".join(f"- `{name}`: {text}" for name, text in found["kinds"].items()),
        ]
    )


def _meta(found: Mapping[str, Any]) -> str:
    return "\n\n".join(
        [
            "## The mean response",
            f"The meta baseline is the mean delta over perturbations, averaged over cell lines. It raises "
            f"{found['up']:,} genes by more than {found['threshold']} ({_names(found['top_up'])}) and lowers "
            f"{found['down']:,} ({_names(found['top_down'])}).",
        ]
    )


def _enrichment(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    rows = [
        [
            *(row["direction"], row["go"], row["namespace"], row["name"]),
            f"{row['study_count']:,} of {row['study_genes']:,}",
            f"{row['measured_count']:,} of {row['measured_genes']:,}",
            f"{row['p_fdr_bh']:.2g}",
        ]
        for row in found["top"]
    ]
    head = ["", "term", "", "", "changed genes", "measured genes", "p (corrected)"]
    counts = ", ".join(f"{number:,} {name}" for name, number in found["annotations"].items())
    return "\n\n".join(
        [
            f"Terms over-represented among them: {found['significant']['up']:,} for genes that go up, "
            f"{found['significant']['down']:,} for genes that go down (corrected p < 0.05).",
            *([_table(head, rows, texts=4)] if rows else []),
            f"Ontology {found['ontology']}; annotations: {counts}.",
        ]
    )


def _metrics(found: Mapping[str, Any]) -> str:
    title = "## Which metric finds a perturbation again"
    if not found["rows"]:
        return f"{title}\n\nNo two contexts share two perturbations: nothing can be found again."
    rows = [
        [
            *(row["representation"], row["similarity"]),
            *(_number(row[name]) for name in ("quantile", "chance_quantile", "mean")),
            *(f"{row['num_perturbations']:,}", f"{row['num_nan']:,}"),
        ]
        for row in found["rows"]
    ]
    head = ["", "", f"{found['quantile']} quantile", "by chance", "mean", "perturbations", "undefined ranks"]
    contexts = _words(found["contexts"])
    return "\n\n".join(
        [
            title,
            f"Retrieval of single cells across {found['pairs']:,} pairs of contexts ({contexts}). Of each "
            "perturbation's mean rank, the quantile over perturbations: strong ones tell metrics apart. By "
            "chance: the same quantile with shuffled labels. The mean is 0.5 by chance.",
            _table(head, rows, texts=2),
        ]
    )


def _tiers(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    counts = ", ".join(f"{number:,} of level {name}" for name, number in found["perturbations"].items())
    parts = [
        "## Knowledge tiers",
        f"Perturbations of the store: {counts}; 0 is the least known, `none` has a gene that is not in the "
        "table. A combination has the level of its least known gene.",
    ]
    if found["rows"]:
        rows = [
            [row["predictor"], row["group"], row["metric"], _number(row["mean"]), *_counted(row)]
            for row in found["rows"]
            if row["metric"] in _METRICS
        ]
        parts.append(_table(["", "level", "metric", "mean", "units", "undefined"], rows, texts=3))
        parts.append("tiers.parquet has every metric.")
    return "\n\n".join(parts)


def _counted(row: Mapping[str, Any]) -> tuple[str, str]:
    return f"{row['num_values']:,}", f"{row['num_nan']:,}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int) -> str:
    rule = ["---" if number < texts else "---:" for number in range(len(head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def _names(genes: Sequence[str]) -> str:
    return ", ".join(genes) or "none"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
