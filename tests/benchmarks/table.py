"""Measured tables from the committed records: README's, between its markers, and all others in RESULTS.md.

python -m tests.benchmarks.table
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tests.benchmarks import faults

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "tests" / "benchmarks" / "results"
BEGIN, END = "<!-- measured:begin -->", "<!-- measured:end -->"
REFERENCES = ("general", "no_change", "split_half_pooled")
"""Rows that are not models, in the order of the tables' last rows."""

PEERS = ("annbatch sparse", "annbatch dense", "litdata", "scDataset", "SCDL", "AnnLoader", "cell-load")
"""Loaders beside ours; of each the fastest setting is shown."""

Record = Mapping[str, Any]


def simulated(record: Record) -> str:
    """A table for each question: mean and spread over seeds, distance from the general baseline, time."""
    details = record["details"]
    parts = [_origin("Simulated screens: test Pearson delta", record)]
    for title, by_model in details["per_seed"].items():
        if title.endswith(": seconds"):
            continue
        seconds = details["per_seed"].get(f"{title.split(',')[0]}: seconds", {})
        general = mean(by_model["general"])
        lines = ["| model | Pearson delta | over general | seconds |", "| --- | ---: | ---: | ---: |"]
        for name in _ordered(by_model):
            values = by_model[name]
            lead = "" if name == "general" else f"{mean(values) - general:+.3f}"
            time = f"{seconds[name]:.0f}" if name in seconds else ""
            lines.append(f"| {name} | {_spread(mean(values), stdev(values))} | {lead} | {time} |")
        parts.append(f"*{title}*\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def real(record: Record) -> str:
    """A table for each screen: the three metrics of every encoder, and the time."""
    found = record["details"]["mean_and_standard_deviation"]
    parts = [_origin("Real screens, held-out perturbations", record)]
    for screen in sorted({title.split(":")[0] for title in found}, reverse=True):
        seconds = found.get(f"{screen}: seconds", {})
        by_metric = {
            metric: found[f"{screen}: {metric}"]
            for metric in ("pearson_delta", "retrieval", "pseudobulk_mse")
        }
        lines = [
            "| model | Pearson delta | retrieval | pseudobulk MSE | seconds |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
        names = {name: None for rows in by_metric.values() for name in rows}
        for name in _ordered(names):
            cells = [_spread(*rows[name]) if name in rows else "" for rows in by_metric.values()]
            time = f"{seconds[name]:.0f}" if name in seconds else ""
            lines.append(f"| {name} | {' | '.join(cells)} | {time} |")
        parts.append(f"*{screen}*\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def loading(record: Record) -> str:
    """Cells a second of our loader and of the best setting of every other."""
    details = record["details"]
    modes = ("warm", "2 ranks", "cold")
    rows = {row["loader"]: row for row in details["table"]}
    shown = [name for name in rows if name.startswith("txpert")]
    for peer in PEERS:
        settings = [name for name in rows if name.startswith(peer)]
        shown += [max(settings, key=lambda name: rows[name]["warm, cells/s"])] if settings else []
    lines = [
        f"| thousand cells/s | {' | '.join(modes)} | peak MiB |",
        f"| --- |{' ---: |' * (len(modes) + 1)}",
    ]
    for name in shown:
        rates = (rows[name][f"{mode}, cells/s"] / 1e3 for mode in modes)
        cells = " | ".join(f"{rate:.0f}" if rate >= 10 else f"{rate:.1f}" for rate in rates)
        lines.append(f"| {name} | {cells} | {rows[name]['warm, peak MiB']:,} |")
    size = f"{details['cells']:,} simulated cells x {details['genes']:,} genes, minibatches of 256"
    rounds = f"medians of {details['rounds']} rounds, mean load {details['load']['median']:.1f}"
    title = f"**Loading** ({size}; {rounds}; commit {record['commit']}; {_machine(record)})"
    return f"{title}\n\n" + "\n".join(lines)


def beside(title: str, record: Record) -> str:
    """Every case of a record beside its reference."""
    lines = ["| | measured | beside it | | measured over it |", "| --- | ---: | --- | ---: | ---: |"]
    for case in record["cases"]:
        ratio = "" if case["ratio"] is None else _digits(case["ratio"])
        measured, unit = _digits(case["value"]), case["unit"]
        reference = f"{_digits(case['reference_value'])} {unit}"
        lines.append(f"| {case['name']} | {measured} {unit} | {case['reference']} | {reference} | {ratio} |")
    what = f"commit {record['commit']}; {_machine(record)}"
    return f"**{title}** ({what})\n\n" + "\n".join(lines)


def soak(record: Record) -> str:
    """Faults that one run went through, and what became of it."""
    what = f"commit {record['commit']}; {_machine(record)}"
    return f"**Faults in one run of two workers** ({what})\n\n{faults.table(record['details'])}"


def _digits(value: float) -> str:
    """Three digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _origin(title: str, record: Record) -> str:
    seeds = ", ".join(map(str, record["details"]["seeds"]))
    what = f"mean ± standard deviation over seeds {seeds}; commit {record['commit']}; {_machine(record)}"
    return f"**{title}** ({what})"


def _machine(record: Record) -> str:
    machine = record["machine"]
    return f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB"


def _ordered(names: Mapping[str, Any]) -> Sequence[str]:
    return [n for n in names if n not in REFERENCES] + [n for n in REFERENCES if n in names]


def _spread(average: float, spread: float) -> str:
    return f"{average:.3f} ± {spread:.3f}"


Section = Callable[[Record], str]
README: Mapping[str, Section] = {
    "science_simulated": simulated,
    "science_real": real,
    "loader": loading,
    "overhead": partial(beside, "`txpert train` on a screen as large as K562's"),
    "earlier": partial(beside, "`txpert train` beside an earlier commit of it, same screen"),
    "scaling": partial(beside, "Two workers, and ZeRO's stages"),
    "faults": soak,
}
OTHERS: Mapping[str, Section] = {
    "ingest": partial(beside, "Ingest of 300,000 simulated cells x 8,000 genes"),
    "ingest_1m": partial(beside, "Ingest of 1,000,000 simulated cells x 8,000 genes"),
    "loader_1m": loading,
    "graph_build": partial(beside, "Building graphs"),
    "flight": partial(beside, "Fetching a snapshot of 20,000 genes and 1,000,000 edges"),
    "encoder": partial(beside, "Perturbation embeddings Z of all genes, forward and backward"),
    "train_step": partial(beside, "Whole training steps"),
    "metrics": partial(beside, "Metrics of 10,000 perturbations x 8,000 genes"),
}


def tables(sections: Mapping[str, Section]) -> str:
    """Those whose record is there, one after the other."""
    files = {RESULTS / f"{name}.json": section for name, section in sections.items()}
    return "\n\n".join(
        section(json.loads(file.read_text(encoding="utf-8")))
        for file, section in files.items()
        if file.exists()
    )


def main() -> None:
    """Rewrite the part of README between the markers, and RESULTS.md."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    readme.write_text(f"{head}{BEGIN}\n{tables(README)}\n{END}{tail}", encoding="utf-8")
    title = "# Measured\n\nWritten by `python -m tests.benchmarks.table` from the records in `results`.\n\n"
    RESULTS.with_name("RESULTS.md").write_text(f"{title}{tables(OTHERS)}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
