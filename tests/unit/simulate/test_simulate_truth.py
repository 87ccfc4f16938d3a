"""The truth of a simulated screen: it is what the cells show, and the hidden network predicts it."""

import csv
from pathlib import Path

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_store import config as graph_config
from txpert_dist.simulate.config import SimulateConfig
from txpert_dist.simulate.effects import draw_truth
from txpert_dist.simulate.network import hidden_network
from txpert_dist.simulate.run import simulate

MEDIUM = SimulateConfig(cells=12_000, genes=600, perturbations=60, doubles=10, programmes=8, batches=2)


class Written:
    """A screen read back by anndata, and its truth by numpy."""

    def __init__(self, folder: Path) -> None:
        simulate(MEDIUM, out=folder / "screen.h5ad")
        self.folder = folder
        self.data = anndata.read_h5ad(folder / "screen.h5ad")
        with np.load(folder / "truth.npz", allow_pickle=False) as truth:
            self.truth = {name: truth[name] for name in truth.files}
        counts = self.data.X
        share = sp.diags(4000 / np.asarray(counts.sum(axis=1)).ravel()) @ counts
        self.expression = share.log1p().toarray()

    def rows_of_line(self, line: str) -> np.ndarray:
        return np.flatnonzero(self.truth["cell_line"] == line)

    def observed_delta(self, line: str) -> np.ndarray:
        """(P, G) mean over a perturbation's cells of expression minus control mean of the cell's batch."""
        obs = self.data.obs
        delta = np.zeros_like(self.truth["delta"][self.rows_of_line(line)])
        centred = self.expression.copy()
        for batch in obs["batch"].unique():
            here = (obs["cell_line"].eq(line) & obs["batch"].eq(batch)).to_numpy()
            control = here & obs["perturbation"].eq("control").to_numpy()
            centred[here] -= self.expression[control].mean(axis=0)
        for row, name in enumerate(self.truth["perturbation"][self.rows_of_line(line)]):
            mine = obs["cell_line"].eq(line) & obs["perturbation"].eq(name)
            delta[row] = centred[mine.to_numpy()].mean(axis=0)
        return delta


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return Written(tmp_path_factory.mktemp("truth"))


def correlations(a_RG: np.ndarray, b_RG: np.ndarray) -> np.ndarray:
    return np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(a_RG, b_RG, strict=True)])


def test_pseudobulk_delta_of_the_cells_is_the_true_delta(written: Written) -> None:
    for line in ("LINE1", "LINE2"):
        true = written.truth["delta"][written.rows_of_line(line)]
        observed = written.observed_delta(line)
        assert np.median(correlations(true[1:], observed[1:])) > 0.85
        assert not true[0].any()


def test_control_cells_show_the_true_expression(written: Written) -> None:
    obs = written.data.obs
    for line in ("LINE1", "LINE2"):
        control = (obs["cell_line"].eq(line) & obs["perturbation"].eq("control")).to_numpy()
        true = written.truth["expression"][written.rows_of_line(line)[0]]
        assert np.corrcoef(true, written.expression[control].mean(axis=0))[0, 1] > 0.98


def test_the_targeted_gene_goes_down(written: Written) -> None:
    targets, delta = written.truth["targets"], written.truth["delta"][written.rows_of_line("LINE1")]
    expression = written.truth["expression"][0]
    single = np.flatnonzero((targets[:, 0] >= 0) & (targets[:, 1] < 0))
    visible = single[expression[targets[single, 0]] > 0.5]
    assert len(visible) > 20
    assert (delta[visible, targets[visible, 0]] < 0).mean() > 0.95


def test_doubles_are_nearly_the_sum_of_their_singles() -> None:
    truth = draw_truth(MEDIUM, hidden_network(MEDIUM))
    code = {name: number for number, name in enumerate(truth.perturbations)}
    doubles = [name for name in truth.perturbations if "+" in name]
    assert len(doubles) == 10
    both = truth.log_effect_RG[[code[name] for name in doubles]]
    sums = sum(truth.log_effect_RG[[code[name.split("+")[k]] for name in doubles]] for k in (0, 1))
    assert correlations(both, sums).min() > 0.8
    assert correlations(both, sums).max() < 1


def test_lines_share_their_effects_as_configured() -> None:
    same = draw_truth(MEDIUM.model_copy(update={"effect_sharing": 1.0}), hidden_network(MEDIUM))
    first, second = np.split(same.log_effect_RG, 2)
    np.testing.assert_array_equal(first, second)
    partly = draw_truth(MEDIUM, hidden_network(MEDIUM))
    first, second = np.split(partly.log_effect_RG, 2)
    assert 0.5 < np.median(correlations(first[1:], second[1:])) < 0.98


def single_deltas(truth: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Perturbed genes and their deltas in the first line, mean over perturbations taken off."""
    targets = truth["targets"]
    single = np.flatnonzero((targets[:, 0] >= 0) & (targets[:, 1] < 0))
    delta = truth["delta"][single]
    return targets[single, 0], delta - delta.mean(axis=0)


def test_neighbours_in_the_hidden_network_have_similar_effects(written: Written) -> None:
    gene, delta = single_deltas(written.truth)
    similarity = np.corrcoef(delta)
    edges = written.truth["edges"]
    rng = np.random.default_rng(0)
    # Both ends keep their degrees; what joins what is drawn anew.
    rewired = np.stack([edges[0], rng.permutation(edges[1])])

    def mean_similarity(edges_2E: np.ndarray) -> float:
        position = np.full(MEDIUM.genes, -1)
        position[gene] = np.arange(len(gene))
        a, b = position[edges_2E]
        keep = (a >= 0) & (b >= 0) & (a != b)
        assert keep.sum() > 30
        return float(similarity[a[keep], b[keep]].mean())

    anywhere = (similarity.sum() - len(gene)) / (len(gene) * (len(gene) - 1))
    assert mean_similarity(edges) > anywhere + 0.3
    assert abs(mean_similarity(rewired) - anywhere) < 0.1


def test_neighbours_are_alike_beyond_sharing_a_programme() -> None:
    """Else a graph were worth no more than a list of communities."""
    config = MEDIUM.model_copy(update={"perturbations": 150, "doubles": 0})
    network = hidden_network(config)
    truth = draw_truth(config, network)
    gene = truth.targets_P2[1:, 0]
    effect = truth.log_effect_RG[1 : len(gene) + 1]
    similarity = np.corrcoef(effect - effect.mean(axis=0))
    linked = np.zeros((config.genes, config.genes), bool)
    linked[tuple(network.edges_2E)] = True
    linked |= linked.T
    linked = linked[np.ix_(gene, gene)]
    together = network.programme[gene][:, None] == network.programme[gene]
    np.fill_diagonal(together, False)
    assert similarity[together & linked].mean() > similarity[together & ~linked].mean() + 0.05


def test_the_knowledge_graph_predicts_unseen_perturbations_better_than_their_mean(written: Written) -> None:
    """A plain neighbour average over the noisy files must win by far, or no GNN could."""
    genes = {str(name): number for number, name in enumerate(written.truth["genes"])}
    with (written.folder / "kg_interactions.csv").open() as file:
        rows = list(csv.DictReader(file))
    ends = np.array([[genes[row["source"]], genes[row["target"]]] for row in rows]).T
    adjacency = sp.csr_matrix((np.ones(ends.shape[1]), ends), shape=(600, 600))
    adjacency = adjacency + adjacency.T
    walk = (sp.diags(1 / np.maximum(adjacency.sum(axis=1).A1, 1)) @ adjacency).toarray()
    near = walk + walk @ walk + walk @ walk @ walk
    gene, _ = single_deltas(written.truth)
    targets = written.truth["targets"]
    row = np.flatnonzero((targets[:, 0] >= 0) & (targets[:, 1] < 0))
    observed = written.observed_delta("LINE1")[row]
    held_out = np.arange(len(gene)) % 4 == 0
    weight = near[np.ix_(gene[held_out], gene[~held_out])] + 1e-9
    predicted = weight / weight.sum(axis=1, keepdims=True) @ observed[~held_out]
    mean = np.tile(observed[~held_out].mean(axis=0), (held_out.sum(), 1))
    gain = correlations(predicted, observed[held_out]) - correlations(mean, observed[held_out])
    assert gain.mean() > 0.1


def test_knowledge_graphs_miss_and_invent_as_configured(written: Written) -> None:
    genes = {str(name): number for number, name in enumerate(written.truth["genes"])}
    with (written.folder / "kg_interactions.csv").open() as file:
        listed = {(genes[row["source"]], genes[row["target"]]) for row in csv.DictReader(file)}
    hidden = set(zip(*written.truth["edges"].tolist(), strict=True))
    assert len(listed & hidden) / len(hidden) == pytest.approx(1 - MEDIUM.graph_missing, abs=0.03)
    assert len(listed - hidden) / len(listed) == pytest.approx(MEDIUM.graph_false, abs=0.03)
    with (written.folder / "kg_pathways.gmt").open() as file:
        sets = {line.split("\t")[0]: line.rstrip("\n").split("\t")[2:] for line in file}
    members = {int(genes[name]) for name in sets["PROGRAMME_000"]}
    true = set(np.flatnonzero(written.truth["programme"] == 0).tolist())
    assert len(members & true) / len(true) == pytest.approx(0.7, abs=0.15)
    assert len(sets) > 8


def test_the_recipe_is_one_the_graph_store_reads(written: Written) -> None:
    recipe = graph_config.load(written.folder / "graphs.yaml")
    assert [graph.name for graph in recipe.graphs] == ["interactions", "pathways"]
    assert all(graph.source.path.is_file() for graph in recipe.graphs)


@given(
    genes=st.integers(20, 300),
    programmes=st.integers(2, 4),
    edges_per_gene=st.integers(1, 12),
    seed=st.integers(0, 99),
)
@settings(max_examples=30)
def test_hidden_networks_are_proper_graphs(
    genes: int, programmes: int, edges_per_gene: int, seed: int
) -> None:
    config = SimulateConfig(
        genes=genes, programmes=programmes, edges_per_gene=edges_per_gene, perturbations=1, seed=seed
    )
    network = hidden_network(config)
    source, target = network.edges_2E
    assert (source != target).all()
    assert len(set(zip(source.tolist(), target.tolist(), strict=True))) == len(source)
    assert np.isin(source, network.regulators).all()
    assert len(np.unique(network.programme)) == programmes
    total = np.asarray(abs(network.regulation()).sum(axis=1)).ravel()
    assert ((np.abs(total - 1) < 1e-9) | (total == 0)).all()


@given(seed=st.integers(0, 50), perturbations=st.integers(3, 20), doubles=st.integers(0, 3))
@settings(max_examples=25)
def test_perturbation_names_are_canonical(seed: int, perturbations: int, doubles: int) -> None:
    config = SimulateConfig(
        genes=20, programmes=2, perturbations=perturbations, doubles=doubles, seed=seed, cell_lines=1
    )
    truth = draw_truth(config, hidden_network(config))
    names = truth.perturbations
    assert names[0] == "control"
    assert list(names[1:]) == sorted(set(names[1:]))
    assert len(names) == 1 + perturbations + doubles
    for name, pair in zip(names[1:], truth.targets_P2[1:], strict=True):
        assert name.split("+") == sorted(truth.genes[gene] for gene in pair if gene >= 0)
