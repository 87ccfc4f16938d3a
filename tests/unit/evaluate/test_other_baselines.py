"""Baselines beside the general one: their definitions, exactness where they should be exact, blindness."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import Ridge

from graph_store.graph import KnowledgeGraph, Snapshot
from tests.unit.train.small_screen import CONTEXTS, write_store
from txpert_dist.evaluate.baselines import (
    Training,
    fit_additive,
    fit_batch_mean,
    fit_general,
    fit_nearest_line,
    fit_neighbours,
    fit_train_mean,
    training_from,
)
from txpert_dist.evaluate.fitting import fit_baselines, training_of
from txpert_dist.evaluate.linear import FEWEST, fit_ridge, gene_embedding
from txpert_dist.evaluate.neighbours import GraphGenes
from txpert_dist.loader.conditions import perturbation_deltas, perturbed_rows
from txpert_dist.metrics.delta import PerturbationDeltas
from txpert_dist.store.cells import open_store
from txpert_dist.store.splits import split_perturbations

NAMES = ("control", "A", "A+B", "B", "C", "C+D", "D")


def training(deltas: dict[tuple[str, int], NDArray[np.float64]], cells: int = 4, lines: int = 2) -> Training:
    """Deltas by (perturbation, cell line); one context a line, another without training cells."""
    keys = sorted((NAMES.index(name), line) for name, line in deltas)
    codes, of_line = np.array(keys, np.int32).T
    delta_PG = np.array([deltas[NAMES[code], line] for code, line in keys])
    rng = np.random.default_rng(0)
    control_CG = rng.random((lines + 1, delta_PG.shape[1]))
    line_C = np.append(np.arange(lines), 0)
    mean_CG = np.full(control_CG.shape, np.nan)
    mean_CG[:lines] = control_CG[:lines] + 7.0
    number = np.arange(cells, cells + len(keys))
    return training_from(
        PerturbationDeltas(codes, of_line, number, delta_PG), NAMES, control_CG, line_C, mean_CG
    )


def change(predictor, known: Training, name: str, context: int = 0) -> NDArray[np.float64]:
    code, place = np.array([NAMES.index(name)], np.int32), np.array([context], np.int32)
    return predictor.predict(code, place)[0] - known.control_mean_CG[context]


def random_deltas(*keys: tuple[str, int], genes: int = 6, seed: int = 1) -> dict:
    rng = np.random.default_rng(seed)
    return {key: rng.normal(size=genes) for key in keys}


def test_additive_adds_components_also_of_seen_combinations() -> None:
    deltas = random_deltas(("A", 0), ("B", 0), ("A+B", 0), ("C", 0))
    known = training(deltas, lines=1)
    additive = fit_additive(known)
    general = fit_general(known.deltas, NAMES, known.control_mean_CG)
    overall = np.average(known.deltas.delta_PG, axis=0, weights=known.deltas.num_cells_P)
    assert change(additive, known, "A+B") == pytest.approx(deltas["A", 0] + deltas["B", 0])
    assert change(general, known, "A+B") == pytest.approx(deltas["A+B", 0])
    assert change(additive, known, "C+D") == pytest.approx(deltas["C", 0] + overall)
    assert change(additive, known, "A") == pytest.approx(deltas["A", 0])
    assert change(additive, known, "control") == pytest.approx(np.zeros(6))


def test_train_mean_weighs_perturbations_alike_and_prefers_the_own_line() -> None:
    deltas = random_deltas(("A", 0), ("B", 0), ("A", 1))
    known = training(deltas, lines=3)
    mean = fit_train_mean(known)
    assert change(mean, known, "C", 0) == pytest.approx((deltas["A", 0] + deltas["B", 0]) / 2)
    assert change(mean, known, "B", 1) == pytest.approx(deltas["A", 1])
    both = ((deltas["A", 0] + deltas["A", 1]) / 2 + deltas["B", 0]) / 2
    assert change(mean, known, "B", 2) == pytest.approx(both)


def test_batch_mean_is_where_a_cell_was() -> None:
    known = training(random_deltas(("A", 0), ("B", 1)))
    batch = fit_batch_mean(known)
    assert change(batch, known, "A", 0) == pytest.approx(np.full(6, 7.0))
    assert change(batch, known, "D", 1) == pytest.approx(np.full(6, 7.0))
    assert change(batch, known, "D", 2) == pytest.approx(change(fit_train_mean(known), known, "D", 2))


def test_nearest_line_is_the_most_correlated_in_shared_training_perturbations() -> None:
    rng = np.random.default_rng(0)
    first = {name: rng.normal(size=40) for name in ("A", "B")}
    deltas = {(name, 0): value for name, value in first.items()}
    deltas |= {(name, 1): -value for name, value in first.items()}
    deltas |= {(name, 2): value + 0.1 * rng.normal(size=40) for name, value in first.items()}
    deltas |= {("C", 1): rng.normal(size=40), ("C", 2): rng.normal(size=40)}
    known = training(deltas, lines=3)
    nearest = fit_nearest_line(known)
    assert change(nearest, known, "A", 0) == pytest.approx(deltas["A", 2])
    assert change(nearest, known, "C", 0) == pytest.approx(deltas["C", 2])
    assert change(nearest, known, "A", 2) == pytest.approx(deltas["A", 0])
    # line 1 disagrees with both: it takes the less unlike one


def test_nearest_line_of_a_held_out_line_goes_by_control_cells() -> None:
    known = training(random_deltas(("A", 0), ("A", 1), genes=30), lines=3)
    control_CG = known.control_mean_CG.copy()
    control_CG[2] = control_CG[1] + 0.01 * np.random.default_rng(0).random(30)
    nearest = fit_nearest_line(known._replace(control_mean_CG=control_CG))
    code, context = np.array([1], np.int32), np.array([2], np.int32)
    delta = nearest.predict(code, context)[0] - control_CG[2]
    assert delta == pytest.approx(known.deltas.delta_PG[1])


def snapshot(edges: list[tuple[str, str, float]]) -> Snapshot:
    genes = ("A", "B", "C", "D", "X")
    found = sorted((genes.index(t), genes.index(s), w) for s, t, w in edges)
    target, source, weight = (np.array(part) for part in zip(*found, strict=True))
    graph = KnowledgeGraph("kg", np.stack([source, target]).astype(np.int32), weight.astype(np.float32))
    return Snapshot("id", genes, (graph,), {"D_old": "D"})


def test_unseen_genes_change_what_their_neighbours_in_the_graph_change() -> None:
    deltas = random_deltas(("A", 0), ("B", 0), ("C", 0))
    known = training(deltas, lines=1)
    graph = GraphGenes(snapshot([("A", "D", 1.0), ("D", "B", 3.0), ("X", "D", 9.0), ("A", "C", 9.0)]))
    neighbours = fit_neighbours(known, graph.neighbours)
    expected = (deltas["A", 0] + 3 * deltas["B", 0]) / 4
    assert change(neighbours, known, "D") == pytest.approx(expected)
    assert change(neighbours, known, "A") == pytest.approx(deltas["A", 0])
    assert change(neighbours, known, "C+D") == pytest.approx(deltas["C", 0] + expected)
    nearest = fit_neighbours(known, graph.neighbours, number=1)
    assert change(nearest, known, "D") == pytest.approx(deltas["B", 0])
    assert graph.neighbours("D_old") == graph.neighbours("D")
    assert graph.neighbours("unheard of") == {}
    alone = fit_neighbours(known, lambda _: {})
    overall = np.average(known.deltas.delta_PG, axis=0, weights=known.deltas.num_cells_P)
    assert change(alone, known, "D") == pytest.approx(overall)


def linear_screen(num: int, genes: int, noise: float) -> tuple[Training, dict[str, NDArray[np.float64]]]:
    """Perturbations whose changes are a linear function of an embedding; half of them trained."""
    rng = np.random.default_rng(4)
    names = ("control", *(f"P{i:03d}" for i in range(num)))
    embedding = {name: rng.normal(size=3) for name in names[1:]}
    weight_KG = rng.normal(size=(3, genes))
    codes = np.arange(1, num // 2 + 1, dtype=np.int32)
    delta_PG = np.stack([embedding[names[c]] @ weight_KG for c in codes]) + 0.5
    delta_PG += noise * rng.normal(size=delta_PG.shape)
    deltas = PerturbationDeltas(codes, np.zeros_like(codes), np.full(len(codes), 9), delta_PG)
    control_CG = np.zeros((1, genes))
    known = training_from(deltas, names, control_CG, np.zeros(1, np.int64), control_CG)
    return known, {name: value @ weight_KG + 0.5 for name, value in embedding.items()} | {"@": embedding}


def test_ridge_finds_a_linear_map_and_is_scikit_learns() -> None:
    known, truth = linear_screen(60, 25, noise=0.0)
    embedding = truth.pop("@")
    every_G = np.eye(25)  # an embedding of the genes that holds everything
    ridge = fit_ridge(known, every_G, embedding, "ridge")
    codes = np.arange(31, 61, dtype=np.int32)
    predicted = ridge.predict(codes, np.zeros(30, np.int32))
    assert np.abs(predicted - [truth[known.perturbations[c]] for c in codes]).max() < 0.05
    point_TK = np.stack([embedding[known.perturbations[c]] for c in known.deltas.perturbation_P])
    size = ((point_TK - point_TK.mean(0)) ** 2).sum() / 3
    model = Ridge(alpha=ridge.penalty * size).fit(point_TK, known.deltas.delta_PG)
    # the penalty on the genes' side divides by 1 + penalty where their embedding is the identity
    assert np.abs(model.coef_.T / (1 + ridge.penalty) - ridge.weight_KG).max() < 1e-9
    assert (ridge.predict(np.zeros(1, np.int32), np.zeros(1, np.int32)) == 0).all()
    again = fit_ridge(known, every_G, embedding, "ridge")
    assert (again.weight_KG == ridge.weight_KG).all()


def test_ridge_of_noise_is_penalised_and_few_are_not_fitted() -> None:
    known, truth = linear_screen(60, 25, noise=20.0)
    embedding = truth.pop("@")
    ridge = fit_ridge(known, np.eye(25), embedding, "ridge")
    assert ridge.penalty >= 1.0
    few = {name: embedding[name] for name in list(embedding)[: FEWEST - 1]}
    assert fit_ridge(known, np.eye(25), few, "ridge") is None
    assert fit_ridge(known, np.eye(25), {}, "ridge") is None


def test_gene_embedding_spans_the_principal_components() -> None:
    known, _ = linear_screen(60, 25, noise=0.1)
    found = gene_embedding(known, dimensions=4)
    profile_GT = np.vstack([np.zeros(25), known.deltas.delta_PG]).T
    profile_GT = profile_GT - profile_GT.mean(0)
    left, size, _ = np.linalg.svd(profile_GT, full_matrices=False)
    expected = left[:, :4] * size[:4]
    assert np.abs(found @ found.T - expected @ expected.T).max() < 1e-8


def test_graph_embedding_is_of_the_normalised_adjacency() -> None:
    rng = np.random.default_rng(0)
    genes = tuple(f"g{i:02d}" for i in range(40))
    pairs = sorted({(int(t), int(s)) for t, s in rng.integers(0, 39, (150, 2)) if t != s})
    target, source = np.array(pairs, np.int32).T
    graph = KnowledgeGraph("kg", np.stack([source, target]), rng.random(len(pairs)).astype(np.float32) + 0.1)
    found = GraphGenes(Snapshot("id", genes, (graph,), {})).embedding(5)
    dense = np.zeros((40, 40))
    dense[source, target] = graph.weight_E / graph.weight_E.max()
    dense = dense + dense.T
    degree = dense.sum(1)
    scale = np.where(degree > 0, 1 / np.sqrt(np.where(degree > 0, degree, 1)), 0)
    value, vector = np.linalg.eigh(scale[:, None] * dense * scale)
    expected = vector[:, np.argsort(-value)[:5]]
    ours = np.stack([found.get(gene, np.zeros(5)) for gene in genes])
    assert np.abs(ours @ ours.T - expected @ expected.T).max() < 1e-5
    assert "g39" not in found
    assert GraphGenes(snapshot([("A", "B", 1.0)])).embedding(5) == {}


@pytest.mark.parametrize("held_out", [(), ("RPE1",)])
def test_cells_that_are_held_out_change_no_prediction_of_any_baseline(
    tmp_path: Path, held_out: tuple[str, ...]
) -> None:
    """The library sizes of held-out cells are spoilt: their expression is another, controls are the same."""
    plain = open_store(write_store(tmp_path / "plain.zarr"))
    names = plain.perturbations
    line_B = np.array([CONTEXTS[code].cell_line for code in plain.context])
    split_B = split_perturbations(names, seed=0)[plain.perturbation]
    forbidden = (split_B != 0) | (np.isin(line_B, held_out) & (plain.perturbation != 0))
    edges = [(f"P{i:02d}", f"P{(i + 3) % 16:02d}", 1.0 + i) for i in range(16)]
    genes = tuple(sorted({name for edge in edges for name in edge[:2]}))
    found = sorted((genes.index(t), genes.index(s), w) for s, t, w in edges)
    target, source, weight = (np.array(part) for part in zip(*found, strict=True))
    graph = KnowledgeGraph("kg", np.stack([source, target]).astype(np.int32), weight.astype(np.float32))

    def predictions(path: Path) -> dict[str, NDArray[np.floating]]:
        store = open_store(path)
        view = np.arange(len(store.genes), dtype=np.int64)
        everything = perturbation_deltas(store, perturbed_rows(store), genes=view)
        known = training_of(store, everything, genes=view, held_out_cell_lines=held_out)
        rows = perturbed_rows(store, "test")
        fitted, _ = fit_baselines(known, store, view, rows, Snapshot("id", genes, (graph,), {}))
        places = np.repeat(np.arange(len(names)), 3), np.tile(np.arange(3), len(names))
        code_R, context_R = (part.astype(np.int32) for part in places)
        return {predictor.name: predictor.predict(code_R, context_R) for predictor in fitted}

    def spoilt(name: str, cells: NDArray[np.bool_]) -> dict[str, NDArray[np.floating]]:
        def spoil(library_size: NDArray[np.float32]) -> None:
            library_size[cells] *= 3

        return predictions(write_store(tmp_path / name, spoil=spoil))

    expected = predictions(plain.path)
    wanted = {"no_change", "general", "train_mean", "batch_mean", "knn_graph"}
    assert set(expected) >= (wanted if held_out else wanted | {"nearest_line"})
    for name, predicted in spoilt("forbidden.zarr", forbidden).items():
        assert predicted.tobytes() == expected[name].tobytes(), name
    learned = spoilt("allowed.zarr", ~forbidden & (plain.perturbation != 0))
    changed = {name for name in expected if learned[name].tobytes() != expected[name].tobytes()}
    assert changed == set(expected) - {"no_change"}
