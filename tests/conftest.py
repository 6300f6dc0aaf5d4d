"""What tests of several folders share."""

import pytest
import typer
from typer.testing import CliRunner

from bitwright.quant import InputError


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
