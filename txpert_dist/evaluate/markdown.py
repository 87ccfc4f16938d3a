"""The one-page reading of a report.

Enters: the report's JSON content and figure names. Leaves: Markdown. Invariant: every number is in the JSON.
"""

from collections.abc import Sequence
from typing import Any

VARIANTS = {
    "no_change": "control mean of the batch and cell line",
    "general": "control mean plus the training delta of the perturbation, of its components where the "
    "combination is unseen, of all perturbations where those are",
    "split_half_pooled": "one random half of the cells predicts the other, batches pooled; comparable with "
    "the rows above",
    "split_half_per_batch": "the methods' variant: halves of each (perturbation, cell line, batch), "
    "retrieval within the batch; fewer cells a unit, so lower",
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
        _scores(content),
        _undefined(content),
        _seen(content["provenance"]),
        "## What was evaluated\n\n" + _bullets({_words(k): f"{v:,}" for k, v in content["counts"].items()}),
        "## Rows\n\n" + _bullets({f"`{k}`": v for k, v in VARIANTS.items()}),
        "## Metrics\n\n" + _bullets({f"`{k}`": v["definition"] for k, v in content["metrics"].items()}),
        "## Made from\n\n" + _bullets({_words(k): _plain(v) for k, v in content["provenance"].items()}),
        *(f"![{_words(name.removesuffix('.png'))}]({name})" for name in figures),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _seen(provenance: dict[str, Any]) -> str:
    """What was seen in training of what is scored."""
    split, lines = provenance["split"], provenance["held_out_cell_lines"]
    if lines:
        return _HELD_OUT_NOTE.format(lines=", ".join(lines), split=_SPLIT_OF_HELD_OUT[split])
    return _TRAIN_NOTE if split == "train" else ""


def _scores(content: dict[str, Any]) -> str:
    metrics = content["metrics"]
    head = [f"{_words(name)} {'↑' if metrics[name]['higher_is_better'] else '↓'}" for name in metrics]
    lines = [_line(["", *head]), _line(["---", *["---:"] * len(head)])]
    for row in [*content["predictors"], *content["reproducibility"]]:
        values = [_number(row["metrics"][name]["mean"]) for name in metrics]
        lines.append(_line([f"`{row['name']}`", *values]))
    note = (
        "Unweighted means over (perturbation, cell line); `split_half_per_batch` over (perturbation, cell "
        "line, batch). Undefined values are left out and counted below."
    )
    return "\n".join(lines) + "\n\n" + note


def _undefined(content: dict[str, Any]) -> str:
    lines = []
    for row in [*content["predictors"], *content["reproducibility"]]:
        counted = [
            f"{name} {mean['num_nan']:,} of {mean['num_nan'] + mean['num_values']:,}"
            for name, mean in row["metrics"].items()
            if mean["num_nan"]
        ]
        if counted:
            lines.append(f"- `{row['name']}`: {', '.join(counted)}")
    if not lines:
        return ""
    why = "A constant prediction or observation has no correlation; a unit of one cell has no halves."
    return "\n".join(["Undefined values:", "", *lines, "", why])


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
