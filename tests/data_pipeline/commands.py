"""`lato data` as a user types it, and what it says."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from data_pipeline.published import encode_table, read_manifest
from infra.cli import app
from infra.errors import UserError
from infra.storage import sha256_file, sha256_json


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


def put_manifest(version, rows):
    """Gives a version other manifest rows, and an index that agrees with them."""
    folder = Path(version)
    (folder / "manifest.parquet").write_bytes(encode_table(rows))
    index = json.loads((folder / "index.json").read_text())
    index["manifest_sha256"] = sha256_file(str(folder / "manifest.parquet"))
    index["digest"] = sha256_json({"shards": index["shards"], "manifest": index["manifest_sha256"]})
    (folder / "index.json").write_text(json.dumps(index))


def relicence(version, licences):
    """Puts a version's samples under these licences, in turn."""
    rows = read_manifest(str(version))
    put_manifest(version, [row | {"licence": licences[n % len(licences)], "target_licence": None} for n, row in enumerate(rows)])
