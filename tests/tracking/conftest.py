"""One MLflow server for all tests of a module."""

from collections.abc import Iterator

import pytest
from mlflow_server import MlflowServer, mlflow_server


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A running server; who kills or stops it has it running again at the end."""
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as server:
        yield server
