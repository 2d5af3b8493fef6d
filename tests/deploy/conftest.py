"""The tiny model behind a server, and the container of the Kubernetes manifest."""

import pytest
from deploy_kit import kubernetes
from server_kit import serving

from penult.server import EndpointConfig


@pytest.fixture(scope="module")
def running(tiny):
    with serving(EndpointConfig(model=str(tiny))) as server:
        yield server


@pytest.fixture
def container():
    return kubernetes()["Deployment"]["spec"]["template"]["spec"]["containers"][0]
