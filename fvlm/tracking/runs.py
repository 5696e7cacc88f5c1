"""Which MLflow run shows a training, for people: by what its evaluation says of the weights."""

import logging
import os
import warnings
from pathlib import Path

from fvlm.tracking.sender import MLFLOW_SETTINGS, experiment_name, say, tracking_uri
from fvlm.tracking.tracker import TRAINED_WEIGHTS

SQLITE = "sqlite:///"
PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}  # seconds


def run_names() -> dict[str, str]:
    """Names of the runs whose report was sent, by the first digits of their weights' sha256.

    Empty without a database; where MLflow cannot be read, a line on stderr says so.
    """
    uri = tracking_uri()
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists():
        return {}
    for name, value in (PATIENCE | MLFLOW_SETTINGS).items():
        os.environ.setdefault(name, value)
    logging.disable()
    try:
        with warnings.catch_warnings(action="ignore"):
            return _read_names(uri)
    except Exception as error:
        say(f"experiments: MLflow at {uri} cannot be read ({error})")
        return {}
    finally:
        logging.disable(logging.NOTSET)


def _read_names(uri: str) -> dict[str, str]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(experiment_name())
    if experiment is None:
        return {}
    known = f"tags.{TRAINED_WEIGHTS} LIKE '%'"
    runs = client.search_runs([experiment.experiment_id], known)  # the newest first
    return {run.data.tags[TRAINED_WEIGHTS]: run.info.run_name for run in reversed(runs)}
