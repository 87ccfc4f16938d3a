"""README's measured table, printed from the committed records and put between its markers.

python -m tests.benchmarks.table
"""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "tests" / "benchmarks" / "results"
BEGIN, END = "<!-- measured:begin -->", "<!-- measured:end -->"


def section(record: dict[str, Any], title: str) -> str:
    """One record as a table with its machine and commit."""
    machine = record["machine"]
    where = f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB"
    seeds = ", ".join(map(str, record["details"]["seeds"]))
    lines = [f"**{title}** (mean over seeds {seeds}; commit {record['commit']}; {where})"]
    lines += [
        "",
        "| what | value | reference | its value | difference |",
        "| --- | ---: | --- | ---: | ---: |",
    ]
    for case in record["cases"]:
        difference = case["value"] - case["reference_value"]
        lines.append(
            f"| {case['name']} | {case['value']:.4f} | {case['reference']} | {case['reference_value']:.4f} "
            f"| {difference:+.4f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Rewrite the part of README between the markers."""
    titles = {"science_simulated": "Simulated screen", "science_real": "Real screens, held-out perturbations"}
    parts = []
    for name, title in titles.items():
        file = RESULTS / f"{name}.json"
        if file.exists():
            parts.append(section(json.loads(file.read_text(encoding="utf-8")), title))
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    readme.write_text(f"{head}{BEGIN}\n" + "\n\n".join(parts) + f"\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
