"""What goes together is opened, what does not is refused with what to do."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.train.small_screen import EMBEDDING, WIDTH, configuration, write_inputs
from txpert_dist import config as configurations
from txpert_dist.embed.commit import commit
from txpert_dist.errors import ConfigError, InputError
from txpert_dist.ingest.claim import claimed
from txpert_dist.model.vocabulary import Vocabulary
from txpert_dist.store.cells import open_store
from txpert_dist.train.inputs import open_inputs, perturbation_nodes

PLAIN = {"kind": "embedding"}
"""A perturbation encoder that asks nothing of the graphs."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def model(**sections):
    return {"latent": 8, "perturbation": PLAIN, **sections}


def test_inputs_have_the_graph_over_all_nodes(folder):
    inputs = open_inputs(configuration(folder, folder, model=model()))
    assert [graph.name for graph in inputs.graph.graphs] == ["curated", "screen"]
    assert inputs.graph.num_nodes == len(inputs.vocabulary.genes) == len(inputs.snapshot.genes) + 2
    chosen = open_inputs(
        configuration(
            folder, folder, model=model(), graph={"location": str(folder / "graphs"), "use": ["screen"]}
        )
    )
    assert [graph.name for graph in chosen.graph.graphs] == ["screen"]


def test_the_basal_encoder_reads_genes_or_an_embedding(folder):
    for genes, width in (("selected", 12), ("all", 24)):
        for basal in ({"kind": "mlp"}, {"kind": "identity"}, {"kind": "vae"}):
            config = configuration(folder, folder, model=model(basal=basal), data={"genes": genes})
            assert open_inputs(config).basal_width == width
        basal = {"kind": "embedding", "key": EMBEDDING}
        config = configuration(folder, folder, model=model(basal=basal), data={"genes": genes})
        assert open_inputs(config).basal_width == WIDTH


@pytest.mark.parametrize("lines", [[], ["RPE1"], ["K562"]])
@pytest.mark.parametrize("controls_as_targets", [True, False])
def test_of_a_held_out_line_there_are_controls_at_most(folder, lines, controls_as_targets):
    data = {"held_out_cell_lines": lines, "controls_as_targets": controls_as_targets}
    inputs = open_inputs(configuration(folder, folder, model=model(), data=data))
    store = inputs.store
    line = np.array([store.contexts[code].cell_line for code in store.context])
    for rows, split in ((inputs.training, 0), (inputs.validation, 1)):
        perturbed = rows[store.perturbation[rows] != 0]
        expected = (store.perturbation != 0) & (store.split[store.perturbation] == split)
        assert perturbed.tolist() == np.flatnonzero(expected & ~np.isin(line, lines)).tolist()
    controls = inputs.training[store.perturbation[inputs.training] == 0]
    assert controls.tolist() == (np.flatnonzero(store.perturbation == 0).tolist() * controls_as_targets)
    assert (store.perturbation[inputs.validation] != 0).all()


REFUSED = {
    "another embedding": (
        {"model": model(basal={"kind": "embedding", "key": "X_scvi"})},
        rf"model\.basal\.key=X_scvi: .*screen\.zarr has no such embedding, it has {EMBEDDING}; make one with "
        "`txpert embed`, or bring it along with `txpert ingest --embedding`",
    ),
    "misspelt cell line": (
        {"data": {"held_out_cell_lines": ["RPE"]}, "model": model()},
        r"data\.held_out_cell_lines: .*no cell line 'RPE'; did you mean RPE1\?",
    ),
    "every cell line": (
        {"data": {"held_out_cell_lines": ["K562", "RPE1"]}, "model": model()},
        r"data\.held_out_cell_lines=K562,RPE1: leaves no perturbed training cell of .*hold out fewer",
    ),
    "expander that the snapshot lacks": (
        {"model": model(perturbation={"kind": "exphormer", "expander_cycles": 99})},
        r"expander_cycles=99.*the snapshot has \d",
    ),
    "positional encodings that it lacks": (
        {"model": model(perturbation={"kind": "gat", "positional": "laplacian"})},
        r"positional=laplacian",
    ),
    "reference graph": (
        {"model": model(perturbation={"kind": "gat_mlg", "reference": "strin"})},
        r"reference='strin'.*curated, screen",
    ),
    "control token among singles": (
        {"model": model(control_token="learned")},
        r"control_token=learned: no perturbation of .*screen\.zarr has two genes",
    ),
    "unknown graph": ({"model": model(), "graph": {"use": ["curatd"]}}, r"'curatd'; did you mean curated\?"),
    "graph twice": ({"model": model(), "graph": {"use": ["screen", "screen"]}}, "screen.* twice"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_together_is_refused_in_one_line(folder, case):
    sections, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message) as caught:
        open_inputs(configuration(folder, folder, **sections))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("trained_without", "accepted"), [([], False), (["RPE1"], True), (None, True)])
def test_an_embedding_trained_on_what_the_run_holds_out_is_refused(tmp_path, trained_without, accepted):
    write_inputs(tmp_path)
    store = open_store(tmp_path / "screen.zarr")
    origin = {} if trained_without is None else {"held_out_cell_lines": trained_without}
    values_BN = store.take_embedding(EMBEDDING, np.arange(store.num_cells))
    with claimed(store.path) as claim:
        commit(claim, "X_learned", WIDTH, [values_BN], origin=origin)
    sections = {"model": model(basal={"kind": "embedding", "key": "X_learned"})}
    run = configuration(tmp_path, tmp_path, data={"held_out_cell_lines": ["RPE1"]}, **sections)
    if accepted:
        assert open_inputs(run).basal_width == WIDTH
    else:
        with pytest.raises(ConfigError, match="X_learned was trained on perturbed cells of RPE1; make"):
            open_inputs(run)


def test_too_few_cells_for_a_minibatch_are_said(folder):
    config = configuration(folder, folder, model=model(), train={"minibatch_size": 4096})
    with pytest.raises(InputError, match=r"fewer than train\.minibatch_size=4096"):
        open_inputs(config)


GENES = ("A", "C", "D", "F", "B", "E")
VOCABULARY = Vocabulary(GENES, 4, 4, {"Z": "A"}, ("B", "E"), {"Z": "A", "Y": "C"})
ALL_ORDERS = configurations.Model(fusion=configurations.SequentialFusion(order="all"))
BY_NAME = configurations.Model(fusion=configurations.SequentialFusion(order="by_name"))


@given(names=st.lists(st.permutations([*"ZBCDEF"]).flatmap(lambda p: st.integers(0, 6).map(lambda n: p[:n]))))
@settings(max_examples=50)
def test_nodes_come_in_the_order_of_their_names_however_they_are_given(names):
    given_names = ["+".join(genes) or "control" for genes in names]
    nodes_RM = perturbation_nodes(BY_NAME, VOCABULARY, given_names)
    for genes, nodes_M in zip(names, nodes_RM, strict=True):
        found = [GENES[node] for node in nodes_M if node >= 0]
        assert found == sorted("A" if gene == "Z" else gene for gene in genes)
        assert (nodes_M[len(found) :] == -1).all()


def test_more_genes_than_orders_are_averaged_over_are_refused_for_that_fusion_only():
    four, five = "A+B+C+D", "A+B+C+D+E"
    assert perturbation_nodes(ALL_ORDERS, VOCABULARY, ["control", four]).shape == (2, 4)
    with pytest.raises(ConfigError, match=re.escape("at most 4 genes, but A+B+C+D+E has 5; train with")):
        perturbation_nodes(ALL_ORDERS, VOCABULARY, ["A", five, four])
    for other in (BY_NAME, configurations.Model()):
        assert perturbation_nodes(other, VOCABULARY, [five]).shape == (1, 5)
