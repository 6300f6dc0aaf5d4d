import pyrtl
import pytest


@pytest.fixture(autouse=True)
def clean_working_block():
    """PyRTL's working block is global; no test sees another's."""
    pyrtl.reset_working_block()
    yield
    pyrtl.reset_working_block()
