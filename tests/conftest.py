"""What tests of several folders share."""

import os
import sys

import pytest
import typer
from typer.testing import CliRunner

from bitwright.quant import InputError, start_numba_pool


@pytest.fixture
def invoke():
    """Call a command: its stdout, or the user's mistake as `InputError`."""

    def call(command, *arguments):
        app = typer.Typer(pretty_exceptions_enable=False)
        app.command()(command)
        result = CliRunner().invoke(app, arguments, catch_exceptions=True)
        if isinstance(result.exception, InputError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    return call


# The number of threads decides the last bits of float sums. A test that leaves torch another one
# makes others fail, depending on their order; fixtures of whole modules are seen here too.


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    item.threads = None
    if "torch" in sys.modules:
        start_numba_pool()
        if chosen := os.environ.get("OMP_NUM_THREADS"):  # numba may have started without torch
            sys.modules["torch"].set_num_threads(int(chosen))
        item.threads = sys.modules["torch"].get_num_threads()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item):
    result = yield
    if item.threads and (left := sys.modules["torch"].get_num_threads()) != item.threads:
        pytest.fail(f"leaves torch {left} threads in place of {item.threads}")
    return result
