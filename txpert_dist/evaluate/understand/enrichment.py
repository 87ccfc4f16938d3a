"""What the mean response is made of: gene sets of the Gene Ontology among the genes that change.

Enters: mean deltas of cell lines, the measured genes, an OBO and a GAF file. Leaves: goatools' test of every
term. Invariants: the background is every gene that the store measures, annotated or not; annotations that
say NOT, or that there is no data, do not count; p-values are corrected (Benjamini-Hochberg) within each
namespace of a set of genes.
"""

import gzip
import shutil
import tempfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from txpert_dist.errors import InputError

THRESHOLD = 0.05
"""A gene is up (down) when the meta baseline raises (lowers) its expression by more than this."""

COLUMNS = (
    *("direction", "go", "namespace", "name", "enriched", "study_count", "study_genes", "measured_count"),
    *("measured_genes", "p", "p_fdr_bh", "genes"),
)

_ASPECTS = {"P": "BP", "F": "MF", "C": "CC"}
_SYMBOL, _QUALIFIER, _TERM, _EVIDENCE, _ASPECT = 2, 3, 4, 6, 8
"""Columns of a GAF."""


class Annotations(NamedTuple):
    """Which terms measured genes have."""

    terms: dict[str, dict[str, set[str]]]
    """Namespace (BP, CC, MF) -> gene -> main ids of its terms."""
    counts: dict[str, int]
    """Annotations used, and left out by reason; genes without any."""


class Changed(NamedTuple):
    """Genes that the meta baseline changes."""

    up: tuple[str, ...]
    down: tuple[str, ...]


def meta_baseline(mean_LG: NDArray[np.float64]) -> NDArray[np.float64]:
    """(G,) the mean responses of the cell lines averaged; a line without perturbations has no say."""
    return np.asarray(mean_LG[~np.isnan(mean_LG).any(1)].mean(0), np.float64)


def changed_genes(
    meta_G: NDArray[np.float64], genes: Sequence[str], *, threshold: float = THRESHOLD
) -> Changed:
    """The genes that change by more than ``threshold``, in the order of ``genes``."""
    up, down = (np.flatnonzero(sign * meta_G > threshold).tolist() for sign in (1, -1))
    return Changed(tuple(genes[i] for i in up), tuple(genes[i] for i in down))


def read_ontology(path: Path) -> Any:
    """goatools' graph of terms (``GODag``) of an OBO file, also .gz; ``InputError`` when it is none."""
    from goatools.obo_parser import GODag

    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "terms.obo"
        try:
            with _opened(path) as packed, plain.open("wb") as file:
                shutil.copyfileobj(packed, file)
            dag = GODag(str(plain), prt=None)
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; `txpert fetch go` brings one") from None
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path}: cannot be read ({error}); check that the file is whole") from None
        except KeyError as error:
            raise InputError(
                f"{path}: refers to the term {error}, which it lacks; give the whole ontology (go-basic.obo)"
            ) from None
        except Exception as error:  # noqa: BLE001  whatever its parser trips over
            raise InputError(f"{path}: is not an OBO file ({error}); give go-basic.obo") from None
    if not dag:
        raise InputError(f"{path}: holds no [Term]; give the OBO file of the ontology (go-basic.obo)")
    return dag


def read_annotations(path: Path, dag: Any, genes: Collection[str]) -> Annotations:
    """The terms of ``genes`` in a GAF file, also .gz; ``InputError`` naming the line that is not a GAF's."""
    measured, counts = set(genes), Counter[str]()
    terms: dict[str, defaultdict[str, set[str]]] = {name: defaultdict(set) for name in _ASPECTS.values()}
    for columns in _rows(path):
        term = dag.get(columns[_TERM])
        if columns[_SYMBOL] not in measured:
            counts["of genes that are not measured"] += 1
        elif "NOT" in columns[_QUALIFIER].split("|"):
            counts["negated"] += 1
        elif columns[_EVIDENCE] == "ND":
            counts["without data"] += 1
        elif term is None:
            counts["with terms that the ontology lacks"] += 1
        else:
            counts["used"] += 1
            terms[_ASPECTS[columns[_ASPECT]]][columns[_SYMBOL]].add(term.id)
    if not counts["used"]:
        raise InputError(
            f"{path}: annotates none of the {len(measured)} measured genes by symbol; give the annotations "
            "of the screen's species, and gene symbols with --gene-name-key at ingest"
        )
    annotated = set().union(*terms.values())
    counts["measured genes without any"] = len(measured - annotated)
    return Annotations({name: dict(found) for name, found in terms.items()}, dict(counts))


def enrichment(
    changed: Changed, genes: Sequence[str], annotations: Annotations, dag: Any, *, alpha: float = 0.05
) -> pd.DataFrame:
    """goatools' result for the genes that go up and those that go down, with the columns ``COLUMNS``.

    Terms count for their ancestors too (is_a), Fisher's exact test is two-sided: goatools' defaults. Sorted
    by direction and p. The table is empty where no gene changes.
    """
    from goatools.goea.go_enrichment_ns import GOEnrichmentStudyNS

    # goatools propagates into what it is given
    own = {
        name: {gene: set(ids) for gene, ids in found.items()}
        for name, found in annotations.terms.items()
        if found
    }
    study = GOEnrichmentStudyNS(
        set(genes), own, dag, propagate_counts=True, alpha=alpha, methods=["fdr_bh"], log=None
    )
    rows = [
        (
            direction,
            *(record.GO, record.NS, record.name, record.enrichment == "e"),
            *(record.study_count, record.study_n, record.pop_count, record.pop_n),
            *(record.p_uncorrected, record.p_fdr_bh, " ".join(sorted(record.study_items))),
        )
        for direction, names in zip(("up", "down"), changed, strict=True)
        for record in study.run_study(set(names), log=None)
    ]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.sort_values(["direction", "p", "go"], ascending=[False, True, True], ignore_index=True)


def _opened(path: Path) -> IO[bytes]:
    # gzip's own class is no IO[bytes] for the type checker
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def _rows(path: Path) -> Iterator[list[str]]:
    try:
        with _opened(path) as file:
            for number, line in enumerate(file, start=1):
                text = line.decode("utf-8")
                if text.startswith("!") or text.isspace():
                    continue
                columns = text.rstrip("\r\n").split("\t")
                if len(columns) <= _ASPECT or columns[_ASPECT] not in _ASPECTS:
                    raise InputError(f"{path}: line {number} is not a GAF's; give goa_human.gaf or its like")
                yield columns
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; `txpert fetch go` brings one") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); check that the file is whole") from None
