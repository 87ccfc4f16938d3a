"""What is published of a model is what it predicts with."""

import numpy as np
import torch

from tests.unit.train.small_screen import configuration, write_inputs, write_run
from txpert_dist.serve.embeddings import model_embedding
from txpert_dist.serve.predict import predict_profiles
from txpert_dist.serve.registered import open_checkpoint


def test_vectors_of_every_gene_that_predictions_are_made_with(tmp_path):
    config = configuration(write_inputs(tmp_path), tmp_path)
    ready = open_checkpoint(write_run(config))
    made = model_embedding(ready)
    assert made.genes == ready.loaded.vocabulary.genes
    assert set(made.genes) > set(ready.loaded.snapshot.genes)  # isolated genes too
    assert (made.z_PD.shape, made.z_PD.dtype) == ((len(made.genes), 8), np.float32)
    with torch.inference_mode():
        again = ready.loaded.model.perturbation_embeddings()
    assert np.array_equal(made.z_PD, again.numpy())
    state = ready.loaded.state
    assert made.origin["model_hash"] == state.model_hash
    assert made.origin["snapshot_id"] == ready.loaded.snapshot.id
    assert str(tmp_path) not in str(made.origin)
    assert made.version == f"small-{state.model_hash[:12]}"
    # a prediction decodes exactly these rows
    gene = made.genes[3]
    control_RN = np.ones((1, 12), np.float32)
    with torch.inference_mode():
        expected = ready.loaded.model.decode(
            torch.from_numpy(control_RN), torch.tensor([[0]]), torch.from_numpy(made.z_PD[3:4])
        )
    np.testing.assert_allclose(predict_profiles(ready, control_RN, [gene]), expected.numpy(), rtol=1e-5)


def test_another_model_is_another_version(tmp_path):
    inputs = write_inputs(tmp_path)
    versions = {
        model_embedding(
            open_checkpoint(write_run(configuration(inputs, tmp_path / str(seed), seed=seed)))
        ).version
        for seed in (0, 1)
    }
    assert len(versions) == 2
