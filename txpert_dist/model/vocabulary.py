"""Perturbation names to nodes of the graph.

Enters: a snapshot's genes and aliases, and perturbation names ("control", "JAK2", "IRF1+STAT1").
Leaves: node numbers, -1 padded. Invariants: the snapshot's nodes keep their numbers and come first; every
perturbed gene of the screen has exactly one node (its own name, else the node it is an alias of, else an
isolated node appended after the graph's); nothing is dropped and every decision is counted.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from graph_store.graph import Snapshot
from txpert_dist.errors import CheckpointError, InputError

CONTROL_NAMES = frozenset({"control", "ctrl"})
"""Names that perturb nothing: "A+ctrl" is "A"."""


class Vocabulary(NamedTuple):
    """The nodes of the perturbation encoder, and how a screen's genes found theirs."""

    genes: tuple[str, ...]
    """(P,) node names: the snapshot's genes in its order, then the isolated genes, sorted."""
    num_graph_genes: int
    """How many of them the snapshot has; node numbers below this are the snapshot's own."""
    exact: int
    """Perturbed genes of the screen that are nodes by name."""
    by_alias: dict[str, str]
    """Perturbed genes of the screen that are nodes by another name -> node name."""
    isolated: tuple[str, ...]
    """Perturbed genes of the screen that the snapshot lacks: nodes without edges, sorted."""
    aliases: dict[str, str]
    """Every other name that a user may give -> node name."""


def build_vocabulary(snapshot: Snapshot, perturbations: Sequence[str]) -> Vocabulary:
    """Nodes for the genes of ``snapshot`` and for every gene in ``perturbations`` (canonical names).

    A name that is both a node and an alias of another node means the node. Raises ``InputError`` for a
    perturbation that names a gene twice.
    """
    nodes = set(snapshot.genes)
    aliases = {
        alias: gene for alias, gene in snapshot.aliases.items() if gene in nodes and alias not in nodes
    }
    perturbed = sorted({gene for name in perturbations for gene in split_name(name)})
    isolated = tuple(gene for gene in perturbed if gene not in nodes and gene not in aliases)
    return Vocabulary(
        genes=tuple(snapshot.genes) + isolated,
        num_graph_genes=len(snapshot.genes),
        exact=sum(gene in nodes for gene in perturbed),
        by_alias={gene: aliases[gene] for gene in perturbed if gene in aliases},
        isolated=isolated,
        aliases=aliases,
    )


def node_numbers(vocabulary: Vocabulary, perturbations: Sequence[str]) -> NDArray[np.int32]:
    """Node numbers of each perturbation: (R, M) with M the largest number of genes (at least 1), -1 padded.

    ``perturbations`` are a store's names by code or what a user typed; aliases, spaces around "+" and any
    order are accepted; "control" is a row of -1. Raises ``InputError`` naming an unknown gene and close
    matches, or the genes of a perturbation that are one and the same node.
    """
    numbers = {gene: number for number, gene in enumerate(vocabulary.genes)}
    numbers |= {alias: numbers[gene] for alias, gene in vocabulary.aliases.items()}
    rows = [_nodes(name, numbers) for name in perturbations]
    nodes_RM = np.full((len(rows), max((len(row) for row in rows), default=1) or 1), -1, dtype=np.int32)
    for row_M, row in zip(nodes_RM, rows, strict=True):
        row_M[: len(row)] = row
    return nodes_RM


def split_name(name: str) -> list[str]:
    """The genes that a perturbation name lists; none for control.

    Raises ``InputError`` when a gene is empty or listed twice.
    """
    parts = [part.strip() for part in name.split("+")]
    genes = [part for part in parts if part not in CONTROL_NAMES]
    if "" in genes:
        raise InputError(f"perturbation {name!r}: a gene name is missing; write genes as 'STAT1+IRF1'")
    if len(set(genes)) < len(genes):
        raise InputError(f"perturbation {name!r}: a gene is listed twice; list each gene once")
    return genes


def to_dict(vocabulary: Vocabulary) -> dict[str, Any]:
    """The vocabulary as JSON-able values, for checkpoints."""
    return vocabulary._asdict() | {"genes": list(vocabulary.genes), "isolated": list(vocabulary.isolated)}


def from_dict(tree: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary that ``to_dict`` wrote. Raises ``CheckpointError`` when the tree is not one."""
    try:
        vocabulary = Vocabulary(
            genes=tuple(tree["genes"]),
            num_graph_genes=int(tree["num_graph_genes"]),
            exact=int(tree["exact"]),
            by_alias=dict(tree["by_alias"]),
            isolated=tuple(tree["isolated"]),
            aliases=dict(tree["aliases"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"perturbation vocabulary cannot be read ({error!r}); use another checkpoint"
        ) from None
    if vocabulary.genes[vocabulary.num_graph_genes :] != vocabulary.isolated or not set(
        vocabulary.aliases.values()
    ) <= set(vocabulary.genes):
        raise CheckpointError("perturbation vocabulary contradicts itself; use another checkpoint")
    return vocabulary


def _nodes(name: str, numbers: Mapping[str, int]) -> list[int]:
    genes = split_name(name)
    for gene in genes:
        if gene not in numbers:
            raise InputError(f"perturbation {name!r}: no gene {gene!r} in the graph{_hint(gene, numbers)}")
    nodes = [numbers[gene] for gene in genes]
    if len(set(nodes)) < len(nodes):
        raise InputError(
            f"perturbation {name!r}: {' and '.join(_same(genes, nodes))} are one gene; list it once"
        )
    return nodes


def _same(genes: Sequence[str], nodes: Sequence[int]) -> list[str]:
    return [gene for gene, node in zip(genes, nodes, strict=True) if nodes.count(node) > 1]


def _hint(gene: str, known: Iterable[str]) -> str:
    spellings: dict[str, str] = {}
    for name in known:
        spellings.setdefault(name.casefold(), name)
    near = difflib.get_close_matches(gene.casefold(), spellings, n=3, cutoff=0.6)
    if not near:
        return "; check the spelling, or build the graph with an alias table that has it"
    return f"; did you mean {', '.join(spellings[name] for name in near)}?"
