"""The one-page reading of a report.

Enters: the report's JSON content and figure names. Leaves: Markdown. Invariant: every number is in the JSON.
"""

from collections.abc import Mapping, Sequence
from typing import Any

VARIANTS = {
    "no_change": "control mean of the batch and cell line",
    "general": "control mean plus the training delta of the perturbation, of its components where the "
    "combination is unseen, of all perturbations where those are",
    "batch_mean": "mean of the perturbed training cells of the batch: where a cell was, not what was done",
    "train_mean": "control mean plus the mean change over training perturbations, the own cell line's if any",
    "nearest_line": "the general baseline of the most similar other training cell line",
    "additive": "as general, but genes of a combination are added even where the combination was seen",
    "knn_graph": "as general, but an unseen gene changes what its heaviest neighbours in the graph change",
    "ridge": "linear: ridge regression on principal components of the training pseudobulks "
    "(Ahlmann-Eltze et al. 2025)",
    "ridge_graph": "the same, with leading eigenvectors of the graph as the perturbed genes' embedding",
    "split_half_pooled": "one random half of the cells predicts the other, batches pooled; comparable with "
    "the rows above",
    "split_half_per_batch": "the methods' variant: halves of each (perturbation, cell line, batch), "
    "retrieval within the batch; fewer cells a unit, so lower",
    "sampling": "two screens of full size, every cell drawn anew from the pooled counts of its "
    "(perturbation, cell line, batch); one predicts the other, batches pooled",
    "sampling_own_genes": "the same, but each screen selects its variable genes anew and those that both "
    "select are compared, as the methods have it: other genes than the rows above",
}
"""What each fixed row is."""


_TRAIN_NOTE = (
    "The general baseline is fitted on the very cells it is scored on here, and the model saw them: these "
    "scores say nothing about unseen perturbations."
)


_HELD_OUT_NOTE = (
    "Held-out cell lines: {lines}. Only their cells are scored. Model and general baseline were fitted on "
    "perturbed cells of the others; of the held-out ones the model saw control cells at most. {split}"
)
_SPLIT_OF_HELD_OUT = {
    "train": "The train split holds seen perturbations: those that were learned from in other cell lines.",
    "validation": "The validation split holds unseen perturbations: learned from in no cell line.",
    "test": "The test split holds unseen perturbations: learned from in no cell line.",
}


def to_markdown(content: dict[str, Any], figures: Sequence[str]) -> str:
    """One page: scores, counts, definitions, provenance, figures."""
    sections = [
        f"# Evaluation on the {content['provenance']['split']} split",
        _headline(content),
        _comparisons(content),
        seen_in_training(content["provenance"]),
        "## All metrics\n\n" + _scores(content),
        _undefined(content),
        _corrected(content),
        _listed("## Checked for leaks", [_checked(check) for check in content["checks"]]),
        _listed("## Left out or done otherwise", [_excluded(item) for item in content["excluded"]]),
        "## What was evaluated\n\n" + _bullets({_words(k): f"{v:,}" for k, v in content["counts"].items()}),
        "## Rows\n\n" + _bullets({f"`{k}`": v for k, v in VARIANTS.items() if k in _names(content)}),
        "## Metrics\n\n" + _bullets({f"`{k}`": v["definition"] for k, v in content["metrics"].items()}),
        "## Made from\n\n" + _bullets({_words(k): _plain(v) for k, v in content["provenance"].items()}),
        *(f"![{_words(name.removesuffix('.png'))}]({name})" for name in figures),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def seen_in_training(provenance: Mapping[str, Any]) -> str:
    """What was seen in training of what is scored; empty for a split of unseen perturbations."""
    split, lines = provenance["split"], provenance["held_out_cell_lines"]
    if lines:
        return _HELD_OUT_NOTE.format(lines=", ".join(lines), split=_SPLIT_OF_HELD_OUT[split])
    return _TRAIN_NOTE if split == "train" else ""


def _rows(content: dict[str, Any]) -> list[dict[str, Any]]:
    return [*content["predictors"], *content["reproducibility"]]


def _names(content: dict[str, Any]) -> set[str]:
    return {row["name"] for row in _rows(content)}


def _defined(content: dict[str, Any]) -> list[str]:
    """Metrics that some row has a value of."""
    return [
        name
        for name in content["metrics"]
        if any(row["metrics"][name]["mean"] is not None for row in _rows(content))
    ]


def score_table(rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any], names: Sequence[str]) -> str:
    """Means with intervals of the metrics ``names``, a line for each row."""
    lines = _heads(metrics, names)
    for row in rows:
        values = [with_interval(row["metrics"][name]["mean"], row["intervals"][name]) for name in names]
        lines.append(_line([f"`{row['name']}`", *values]))
    return "\n".join(lines)


def _heads(metrics: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    heads = [f"{_words(name)} {'↑' if metrics[name]['higher_is_better'] else '↓'}" for name in names]
    return [_line(["", *heads]), _line(["---", *["---:"] * len(heads)])]


def _headline(content: dict[str, Any]) -> str:
    share = content["bootstrap"]["level"]
    return score_table(_rows(content), content["metrics"], content["headline"]) + (
        f"\n\nMean and {share:.0%} bootstrap interval over perturbations "
        f"({content['bootstrap']['resamples']:,} resamples)."
    )


def _comparisons(content: dict[str, Any]) -> str:
    """How much better each model is than each other row, in the metric that models are chosen by."""
    lines = []
    for comparison in content["comparisons"]:
        gain = comparison["metrics"]["pearson_delta"]
        if gain["num_values"]:
            lines.append(
                f"`{comparison['name']}` minus `{comparison['against']}`: "
                f"{with_interval(gain['mean'], gain)}, better in {gain['num_better']:,} of "
                f"{gain['num_values']:,}"
            )
    return _listed("Pearson delta, the same perturbations compared:", lines)


def _corrected(content: dict[str, Any]) -> str:
    lines = [
        f"`{row}`: " + ", ".join(f"{_words(name)} {_number(value)}" for name, value in found.items())
        for row, found in content["spearman_brown"].items()
    ]
    return _listed(
        "What the mean correlation of halves says of whole experiments (Spearman-Brown, 2r / (1 + r)):", lines
    )


def _checked(check: dict[str, Any]) -> str:
    return f"{check['name']}: {check['outcome']}, {check['detail']}"


def _excluded(item: dict[str, Any]) -> str:
    number = "" if item["number"] is None else f"{item['number']:,} "
    return f"{number}{item['what']}: {item['why']}"


def _scores(content: dict[str, Any]) -> str:
    metrics = _defined(content)
    lines = _heads(content["metrics"], metrics)
    for row in _rows(content):
        values = [_number(row["metrics"][name]["mean"]) for name in metrics]
        lines.append(_line([f"`{row['name']}`", *values]))
    note = (
        "Unweighted means over (perturbation, cell line); `split_half_per_batch` over (perturbation, cell "
        "line, batch). Undefined values are left out and counted below."
    )
    return "\n".join(lines) + "\n\n" + note


def _undefined(content: dict[str, Any]) -> str:
    lines, shown = [], _defined(content)
    for row in _rows(content):
        counted = [
            f"{name} {mean['num_nan']:,} of {mean['num_nan'] + mean['num_values']:,}"
            for name, mean in row["metrics"].items()
            if mean["num_nan"] and name in shown
        ]
        if counted:
            lines.append(f"- `{row['name']}`: {', '.join(counted)}")
    if not lines:
        return ""
    why = "A constant prediction or observation has no correlation; a unit of one cell has no halves."
    return "\n".join(["Undefined values:", "", *lines, "", why])


def _listed(title: str, lines: Sequence[str]) -> str:
    return "\n".join([title, "", *(f"- {line}" for line in lines)]) if lines else ""


def with_interval(value: float | None, ends: Mapping[str, Any]) -> str:
    """A mean and the ends of its interval, as text."""
    if value is None or ends["low"] is None:
        return _number(value)
    return f"{_number(value)} ({_number(ends['low'])} to {_number(ends['high'])})"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _bullets(items: dict[str, str]) -> str:
    return "\n".join(f"- {key}: {value}" for key, value in items.items())


def _words(name: str) -> str:
    return name.replace("_", " ")


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
