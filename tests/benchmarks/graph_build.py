"""How long five graphs over 20,000 genes take to build, from files in their publishers' formats.

    python -m tests.benchmarks.graph_build [--quick] [--json FILE]

The files are made up here: STRING links and protein names (gzip), GO annotations (GAF), Reactome's table with
a table of ids, a functional-interaction list, and a screen's embedding table of 1,000 numbers a gene (csv).
Sizes follow the real ones; how many genes a term has falls with its rank as in the human annotations.

    build      whole snapshot, in a process of its own whose peak memory is taken; goal 90 s and 4 GiB
    rebuild    the same again from the finished snapshot; goal: 20 times as fast
    GO         the Jaccard index of annotation sets beside GEARS' way, a loop over pairs of Python sets, on
               the same genes, the edges compared; goal: 200 times as fast
    cosine     the strongest 1 % of pairs beside scikit-learn's dense matrix on the same rows
"""

import argparse
import gzip
import os
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import combinations, pairwise
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from graph_store.cosine import cosine_pairs
from graph_store.similarity import jaccard_pairs
from graph_store.sparsify import num_top_percent
from tests.benchmarks.record import Case, write

SEED = 1
THREADS = 2
GOAL_S, GOAL_GIB = 90.0, 4.0
ABOVE = 0.1
_FAST = {"method": "gzip", "compresslevel": 1}


class Sizes(NamedTuple):
    """How much of everything."""

    genes: int = 20_000
    string_rows: int = 2_000_000
    """Lines of the link file; each pair stands there twice."""
    annotations: int = 300_000
    terms: int = 18_000
    memberships: int = 120_000
    pathways: int = 2_600
    interactions: int = 300_000
    features: int = 1_000
    loop_genes: int = 3_000
    """Genes whose pairs the loop over sets goes through."""
    dense_genes: int = 8_000
    """Genes whose cosines are computed densely."""


QUICK = Sizes(4_000, 200_000, 60_000, 6_000, 24_000, 1_000, 60_000, 300, 1_000, 3_000)


class Built(NamedTuple):
    """One build in a process of its own."""

    seconds: float
    processor_seconds: float
    stages: dict[str, float]
    peak_gib: float
    id: str
    edges: dict[str, int]


def annotations(sizes: Sizes, rng: np.random.Generator) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Distinct (gene, term) memberships: a few terms of thousands of genes, most of less than ten."""
    share = 1 / np.arange(1, sizes.terms + 1) ** 0.8
    target = np.minimum(share / share.sum() * sizes.annotations, sizes.genes * 0.4)
    term = np.repeat(np.arange(sizes.terms), rng.poisson(target))
    # A term's genes lie near each other, so that some pairs share most of their terms.
    centre = rng.integers(0, sizes.genes, sizes.terms)
    width = np.maximum(target * 2, 10)
    gene = (centre[term] + (rng.standard_normal(len(term)) * width[term])).astype(np.int64) % sizes.genes
    key = np.unique(gene * sizes.terms + term)
    return (key // sizes.terms).astype(np.int32), (key % sizes.terms).astype(np.int32)


def write_inputs(folder: Path, sizes: Sizes) -> Path:
    """All files and the recipe below ``folder``; returns the recipe."""
    rng = np.random.default_rng(SEED)
    names = [f"GENE{number}" for number in range(sizes.genes)]
    proteins = [f"9606.ENSP{number:011d}" for number in range(sizes.genes)]
    _write_string(folder, sizes, rng, names, proteins)
    gene, term = annotations(sizes, rng)
    rows = [
        f"UniProtKB\tP{g}\tGENE{g}\tinvolved_in\tGO:{t:07d}\tPMID:1\tIDA\t\tP\tname\t\tprotein\ttaxon:9606\t"
        "20260101\tUniProt\t\t"
        for g, t in zip(gene.tolist(), term.tolist(), strict=True)
    ]
    (folder / "goa_human.gaf.gz").write_bytes(
        gzip.compress("\n".join(["!gaf-version: 2.2", *rows, ""]).encode(), 1)
    )
    pathway = (sizes.pathways * rng.random(sizes.memberships) ** 2).astype(int).tolist()
    member = rng.integers(0, sizes.genes, sizes.memberships).tolist()
    url = "https://reactome.org/PathwayBrowser/#/"
    rows = [
        f"P{g}\tR-HSA-{p}\t{url}R-HSA-{p}\tname of {p}\tTAS\tHomo sapiens"
        for g, p in zip(member, pathway, strict=True)
    ]
    (folder / "UniProt2Reactome.txt").write_text("\n".join([*rows, ""]))
    table = {"symbol": names, "uniprot": [f"P{number}" for number in range(sizes.genes)]}
    pd.DataFrame(table).to_csv(folder / "names.tsv", sep="\t", index=False)
    ends = rng.integers(0, sizes.genes, (sizes.interactions, 2))
    interactions = pd.DataFrame(np.array(names)[ends], columns=["source", "target"])
    interactions["weight"] = rng.random(sizes.interactions).round(3)
    interactions.to_csv(folder / "interactions.csv", index=False)
    x_GD = _profiles(sizes, rng)
    pd.DataFrame(x_GD, names).to_csv(folder / "embedding.csv", float_format="%.6g")
    return _write_recipe(folder)


def _write_string(
    folder: Path, sizes: Sizes, rng: np.random.Generator, names: list[str], proteins: list[str]
) -> None:
    ends = rng.integers(0, sizes.genes, (sizes.string_rows // 2, 2))
    links = pd.DataFrame(np.array(proteins)[np.concatenate([ends, ends[:, ::-1]])])
    links["score"] = np.tile(rng.integers(150, 1000, len(ends)), 2)
    links.columns = ["protein1", "protein2", "combined_score"]
    links.to_csv(folder / "9606.protein.links.v12.0.txt.gz", sep=" ", index=False, compression=_FAST)
    info = pd.DataFrame({"#string_protein_id": proteins, "preferred_name": names, "protein_size": 100})
    info.assign(annotation="text").to_csv(
        folder / "9606.protein.info.v12.0.txt.gz", sep="\t", index=False, compression=_FAST
    )


def _profiles(sizes: Sizes, rng: np.random.Generator) -> NDArray[np.float32]:
    hidden = rng.normal(size=(sizes.genes, 20)) @ rng.normal(size=(20, sizes.features))
    return (hidden + 4 * rng.normal(size=hidden.shape)).astype(np.float32)


def _write_recipe(folder: Path) -> Path:
    recipe = {
        "aliases": {"path": "names.tsv", "alias": ["symbol", "uniprot"], "approved": "symbol"},
        "graphs": [
            {
                "name": "STRING",
                "source": {
                    "kind": "string",
                    "path": "9606.protein.links.v12.0.txt.gz",
                    "info": "9606.protein.info.v12.0.txt.gz",
                },
            },
            {"name": "GO", "source": {"kind": "go", "path": "goa_human.gaf.gz", "jaccard_above": ABOVE}},
            {"name": "Reactome", "source": {"kind": "reactome", "path": "UniProt2Reactome.txt"}},
            {"name": "FI", "source": {"kind": "edges", "path": "interactions.csv"}},
            {"name": "screen", "source": {"kind": "embedding", "path": "embedding.csv"}},
        ],
    }
    (folder / "graphs.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "graphs.yaml"


def built(recipe: Path, out: Path) -> Built:
    """Build in a new process of ``THREADS`` threads."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_build, recipe, out).result()


def _build(recipe: Path, out: Path) -> Built:
    from graph_store.build import build
    from graph_store.config import load

    started = time.perf_counter()
    marks = [("start", started)]
    done = build(load(recipe), out=out, progress=lambda what, *_: marks.append((what, time.perf_counter())))
    seconds = time.perf_counter() - started
    stages: dict[str, float] = {}
    for (what, begin), (_, end) in pairwise(marks):
        stages[what] = round(stages.get(what, 0) + end - begin, 3)
    used = resource.getrusage(resource.RUSAGE_SELF)
    processor, peak = used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20
    return Built(
        seconds, processor, stages, peak, done.id, {report.name: report.edges for report in done.graphs}
    )


def go_cases(sizes: Sizes, repeats: int) -> list[Case]:
    """Jaccard of annotation sets, ours beside the loop, on the genes with the most annotations."""
    gene, term = annotations(sizes, np.random.default_rng(SEED))
    most = np.argsort(-np.bincount(gene, minlength=sizes.genes), kind="stable")[: sizes.loop_genes]
    number = np.full(sizes.genes, -1, np.int32)
    number[most] = np.arange(len(most))
    kept = number[gene] >= 0
    some_gene, some_term = number[gene[kept]], term[kept]
    ours, loop = interleaved(
        lambda: jaccard_pairs(some_gene, some_term, above=ABOVE),
        lambda: loop_over_sets(some_gene, some_term),
        repeats,
    )
    found = jaccard_pairs(some_gene, some_term, above=ABOVE)
    pairs = dict(zip(map(tuple, found.edges_2E.T.tolist()), found.weight_E.tolist(), strict=True))
    expected = {
        pair: float(np.float32(value)) for pair, value in loop_over_sets(some_gene, some_term).items()
    }
    if pairs != expected:
        raise AssertionError("the two ways to the GO graph differ")
    everything = median(timed(lambda: jaccard_pairs(gene, term, above=ABOVE)) for _ in range(repeats))
    per_pair = loop / (len(most) * (len(most) - 1) / 2)
    estimate = per_pair * sizes.genes * (sizes.genes - 1) / 2
    what = f"pairwise-set loop over the same {len(most):,} genes"
    guess = f"the loop's time per pair times the {sizes.genes:,} genes' pairs (not run)"
    return [
        Case(f"GO Jaccard, {len(most):,} genes", ours, "s", what, loop),
        Case(
            f"GO Jaccard, {sizes.genes:,} genes, {len(gene):,} annotations", everything, "s", guess, estimate
        ),
    ]


def loop_over_sets(gene_R: NDArray[np.int32], term_R: NDArray[np.int32]) -> dict[tuple[int, int], float]:
    """The graph as one would write it down: every pair of genes, two Python sets."""
    terms: dict[int, set[int]] = {}
    for gene, term in zip(gene_R.tolist(), term_R.tolist(), strict=True):
        terms.setdefault(gene, set()).add(term)
    found = {}
    for first, second in combinations(sorted(terms), 2):
        both = len(terms[first] & terms[second])
        index = both / len(terms[first] | terms[second])
        if index > ABOVE:
            found[first, second] = index
    return found


def cosine_case(sizes: Sizes, repeats: int) -> Case:
    """The strongest 1 %, beside the dense matrix in float64."""
    from sklearn.metrics.pairwise import cosine_similarity

    x_GD = _profiles(sizes, np.random.default_rng(SEED))[: sizes.dense_genes]
    count = num_top_percent(len(x_GD), 1.0, directed=False)

    def dense() -> NDArray[np.intp]:
        cosine = np.abs(cosine_similarity(x_GD.astype(np.float64)))
        size = cosine[np.triu_indices(len(x_GD), 1)]
        return np.argpartition(size, len(size) - count)[-count:]

    ours, reference = interleaved(lambda: cosine_pairs(x_GD, count), dense, repeats)
    what = "scikit-learn's dense matrix in float64 and argpartition, not the same on every machine"
    return Case(f"strongest 1 % of cosines, {len(x_GD):,} x {sizes.features:,}", ours, "s", what, reference)


def interleaved(
    ours: Callable[[], object], reference: Callable[[], object], repeats: int
) -> tuple[float, float]:
    """Median seconds of each, taken in turn after one warm-up of ours."""
    ours()
    times = [(timed(ours), timed(reference)) for _ in range(repeats)]
    return median(time for time, _ in times), median(time for _, time in times)


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def build_cases(sizes: Sizes, repeats: int) -> tuple[list[Case], dict[str, object]]:
    """Whole builds and rebuilds; details of the first."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        recipe = write_inputs(folder, sizes)
        megabytes = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
        builds = [built(recipe, folder / f"graphs{number}") for number in range(repeats)]
        again = [built(recipe, folder / f"graphs{number}") for number in range(repeats)]
    if len({one.id for one in (*builds, *again)}) != 1:
        raise AssertionError("builds of the same files have different ids")
    seconds, peak = median(one.seconds for one in builds), max(one.peak_gib for one in builds)
    title = f"{sizes.genes:,} genes x {len(builds[0].edges)} graphs"
    cases = [
        Case(f"build, {title}", seconds, "s", "goal", GOAL_S),
        Case(f"build, {title}: peak memory", peak, "GiB", "goal", GOAL_GIB),
        Case(f"rebuild, {title}", median(one.seconds for one in again), "s", "build", seconds),
    ]
    return cases, {
        "stages_s": builds[0].stages,
        "processor_s": [round(one.processor_seconds, 1) for one in (*builds, *again)],
        "edges": builds[0].edges,
        "input_mb": round(megabytes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="How long building a snapshot takes.")
    parser.add_argument("--quick", action="store_true", help="a fifth of the genes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file to write the record to")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(THREADS)  # of the processes that build
    sizes = QUICK if options.quick else Sizes()
    cases, details = build_cases(sizes, options.repeats)
    cases += [*go_cases(sizes, options.repeats), cosine_case(sizes, options.repeats)]
    for case in cases:
        print(f"{case.name}: {case.value:.3f} {case.unit}; {case.reference}: {case.reference_value:.3f}")
    print(details)
    if options.json:
        write(options.json, cases, sizes=sizes._asdict(), load=os.getloadavg(), threads=THREADS, **details)


if __name__ == "__main__":
    main()
