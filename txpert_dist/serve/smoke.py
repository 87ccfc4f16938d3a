"""Load a registered version as a stranger would and predict with its own input example.

Run as ``python -m txpert_dist.serve.smoke TRACKING_URI MODEL_URI``; exits non-zero when that fails.
"""

import sys

import mlflow
import numpy as np


def check(tracking_uri: str, model_uri: str) -> None:
    """Raise when the version does not load, does not predict, or predicts something that is not finite."""
    mlflow.set_tracking_uri(tracking_uri)
    model = mlflow.pyfunc.load_model(model_uri)
    predicted = model.predict(model.input_example)
    if not np.isfinite(np.stack(predicted["prediction"].to_numpy())).all():
        raise ValueError("the prediction is not finite")


if __name__ == "__main__":
    check(*sys.argv[1:])
