"""`lato data` as a user types it, and what it says."""

import pytest
from typer.testing import CliRunner

from infra.cli import app
from infra.errors import UserError


def lato(*arguments):
    """The printed text of a command that ends well."""
    result = CliRunner().invoke(app, ["data", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def told(*arguments):
    """The message of a command that a user can mend."""
    with pytest.raises(UserError) as error:
        lato(*arguments)
    return str(error.value)


def spoil(file, content=b"{oops"):
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    return file
