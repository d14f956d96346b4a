"""What the tests of the service share."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.settings import ServiceSettings


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """A client of the service as it is by default."""
    with TestClient(create_app(ServiceSettings())) as client:
        yield client
