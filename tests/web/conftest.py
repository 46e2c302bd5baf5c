import pytest


@pytest.fixture(scope="package")
def service():
    return "http://127.0.0.1:18765/"
