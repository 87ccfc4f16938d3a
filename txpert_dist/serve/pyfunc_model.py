"""The registered model as MLflow loads it: models-from-code, so that no pickle is stored or read.

Enters: the artefact folder of a registered version (a checkpoint and the snapshot it was trained with).
Leaves: an MLflow pyfunc whose ``predict`` takes rows of a control profile and a perturbation. This file runs
inside MLflow, which imports the package from the version's own ``code`` folder.
"""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd

from txpert_dist.serve.predict import predict_profiles
from txpert_dist.serve.registered import open_registered


class TxPertPyfunc(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # mlflow ships no types
    """Rows of (control, perturbation) -> predicted expression, log1p(4000 x count / library size)."""

    def load_context(self, context: Any) -> None:
        """Open the checkpoint, every file verified against its manifest."""
        self.registered = open_registered(Path(context.artifacts["model"]))

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One prediction a row: column ``prediction`` holds (G,) values in the model's gene order.

        ``control`` is what the model starts from: expression in that order, or the embedding of its training.
        """
        del context, params
        control_RN = np.stack([np.asarray(row, dtype=np.float32) for row in model_input["control"]])
        predicted_RG = predict_profiles(self.registered, control_RN, model_input["perturbation"].tolist())
        return pd.DataFrame({"prediction": [row.astype(np.float64) for row in predicted_RG]})


mlflow.models.set_model(TxPertPyfunc())
