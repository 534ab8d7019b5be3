"""Addresses of files and folders: paths of this machine and those of object stores, and the file system that is meant by one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fsspec

from infra.errors import UserError

for _scheme in ("s3", "gs"):  # a listing that is kept knows nothing of what workers, or other jobs, write meanwhile
    fsspec.config.conf.setdefault(_scheme, {}).setdefault("use_listings_cache", False)
# gcsfs would ask over gRPC what kind of bucket each is, for a minute where nobody answers that (emulators, proxies); nothing here needs to know
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")


def is_local(uri: str) -> bool:
    """Whether a URI is a plain path on this machine's file system."""
    return "://" not in uri or uri.startswith("file://")


def join(uri: str, *parts: str) -> str:
    """Joins names to a folder's URI."""
    return "/".join([uri.rstrip("/"), *parts])


def filesystem_of(uri: str) -> tuple[Any, str]:
    """The fsspec file system of a URI, and the path in it.

    Raises:
        UserError: No library is here that speaks to such addresses: which one to install.
    """
    if is_local(uri):  # fsspec would take `::` in a name for a chain of file systems
        local = fsspec.filesystem("file")
        return local, local._strip_protocol(str(local_path(uri)))
    scheme = uri.split("://", 1)[0]
    try:
        if "://" not in uri.rsplit("::", 1)[-1]:  # in a name too
            kind = fsspec.get_filesystem_class(scheme)
            return fsspec.filesystem(scheme, **kind._get_kwargs_from_urls(uri)), kind._strip_protocol(uri)
        return fsspec.core.url_to_fs(uri)
    except ImportError as error:
        cause = error.__cause__
        library = (cause.name or "").split(".")[0] if isinstance(cause, ModuleNotFoundError) else ""
        remedy = f"Install it with `pip install {library}`, on every machine that works on this" if library else str(error)
        raise UserError(f"{uri}: a library for {scheme}:// is missing here. {remedy}.") from error
    except ValueError as error:
        if scheme in fsspec.available_protocols():
            raise
        raise UserError(f"{uri}: {scheme}:// is no kind of address that is known here. Give a path, or s3://, gs://, https://.") from error


def folder_uri(given: str) -> str:
    """A folder as a user gives it: an object store's address as it is, a path made absolute."""
    return str(local_path(given).absolute()) if is_local(given) else given.rstrip("/")


def local_path(uri: str) -> Path:
    """The path of a URI on this machine's file system."""
    return Path(uri.removeprefix("file://"))
