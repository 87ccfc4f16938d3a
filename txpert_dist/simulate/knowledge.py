"""Two partial and noisy views of the hidden network, as files the graph store reads.

Enters: a network and gene names. Leaves: ``kg_interactions.csv`` (source, target, weight),
``kg_pathways.gmt`` (gene sets from programmes and regulons) and the ``graphs.yaml`` that builds a snapshot of
both. Invariant: a share of what is true is missing and a share of what is listed is false, as configured.
"""

from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from txpert_dist.simulate.config import Purpose, SimulateConfig, generator
from txpert_dist.simulate.network import Network

INTERACTIONS, PATHWAYS, GRAPHS = "kg_interactions.csv", "kg_pathways.gmt", "graphs.yaml"
GENES_PER_REGULON = 10
"""One regulon in the gene sets for so many genes."""


def write_interactions(path: Path, config: SimulateConfig, network: Network, genes: tuple[str, ...]) -> int:
    """Hidden edges less missing plus false ones, weighted by a noisy confidence; returns their number."""
    rng = generator(config.seed, Purpose.INTERACTIONS)
    kept = np.flatnonzero(rng.random(len(network.weight_E)) >= config.graph_missing)
    num_false = round(len(kept) * config.graph_false / (1 - config.graph_false))
    # False edges leave the same regulators: a graph whose degrees gave them away would be no test.
    source = np.concatenate([network.edges_2E[0, kept], rng.choice(network.edges_2E[0], num_false)])
    target = np.concatenate([network.edges_2E[1, kept], rng.integers(len(genes), size=num_false)])
    confidence = np.concatenate([np.abs(network.weight_E[kept]), np.zeros(num_false)])
    weight = (confidence + 0.2) * rng.lognormal(0.0, 0.4, len(confidence))
    key, first = np.unique(target * np.int64(len(genes)) + source, return_index=True)
    first = first[key // len(genes) != key % len(genes)]
    lines = (f"{genes[source[e]]},{genes[target[e]]},{weight[e]:.4f}\n" for e in first)
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write("source,target,weight\n")
        file.writelines(lines)
    return len(first)


def write_pathways(path: Path, config: SimulateConfig, network: Network, genes: tuple[str, ...]) -> int:
    """Programmes and some regulons as gene sets with missing and false members; returns their number."""
    rng = generator(config.seed, Purpose.PATHWAYS)
    sets = [(f"PROGRAMME_{k:03d}", np.flatnonzero(network.programme == k)) for k in range(config.programmes)]
    num_regulons = min(len(network.regulators), -(-len(genes) // GENES_PER_REGULON))
    for regulator in np.sort(rng.choice(network.regulators, num_regulons, replace=False)):
        targets = network.edges_2E[1, network.edges_2E[0] == regulator]
        sets.append((f"REGULON_{genes[regulator]}", np.append(targets, regulator)))
    written = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        for name, members in sets:
            listed = _blur(rng, config, members, len(genes))
            if len(listed) >= 2:
                file.write("\t".join([name, "simulated", *(genes[gene] for gene in listed)]) + "\n")
                written += 1
    return written


def write_recipe(path: Path, config: SimulateConfig) -> None:
    """The graph store's recipe: both files as undirected graphs."""
    keep = {"kind": "top_in_edges", "count": 20}
    sources = [("interactions", "edges", INTERACTIONS), ("pathways", "gmt", PATHWAYS)]
    graphs = [
        {
            "name": name,
            "source": {"kind": kind, "path": file},
            "keep": dict(keep),
            "version": f"simulated, seed {config.seed}",
        }
        for name, kind, file in sources
    ]
    tree = {"seed": config.seed, "graphs": graphs}
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")


def _blur(
    rng: np.random.Generator, config: SimulateConfig, members: NDArray[np.int64], num_genes: int
) -> NDArray[np.int64]:
    kept = members[rng.random(len(members)) >= config.graph_missing]
    num_false = round(len(kept) * config.graph_false / (1 - config.graph_false))
    return np.unique(np.concatenate([kept, rng.integers(num_genes, size=num_false)]))
