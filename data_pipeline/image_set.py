"""Image sets: several pictures of one person, as one source, with what is declared of each.

`{"images": [{"uri": "name.jpg", "declared": {...} | null}], "generator": {...} | null}`; uris are relative to the JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infra.addresses import filesystem_of, is_local, join
from infra.backoff import retried
from infra.storage import commit, read_bytes, sha256_bytes, sha256_file
from lato.edits import Expression, Intensity

T = TypeVar("T")
GENERATED = (
    "Delete it, and the list beside it that names it (people_, warp_ or diffusers_), and run lato data build again: it is made anew."
)
"""What to do where a file of generated sources is damaged."""


class Declared(BaseModel):
    """What the maker of a picture knows of it. Degrees; landmarks in image pixels, (68, 2)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    expression: Expression | None
    """None where it is not known beforehand (a photo of which another pose was asked): what is read decides, as on any photo."""
    intensity: Intensity
    yaw: float
    pitch: float
    roll: float
    landmarks: list[tuple[float, float]]
    of_photo: bool = Field(default=False, exclude_if=lambda value: not value)
    """Of an edited photo: the pose is that which was read on the photo, and the steps that were asked of it. Each such picture is held to its own pose;
    of drawn ones, whose pose is true but not on the reader's scale, two are held to the step between them."""


class SetImage(BaseModel):
    """One picture of a set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str
    declared: Declared | None = None


class ImageSet(BaseModel):
    """The set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: list[SetImage]
    generator: dict[str, Any] | None = None


def read_image_set(uri: str) -> ImageSet:
    """Reads a set, or makes one of a single image. Image uris come back absolute.

    Raises:
        ValueError: The JSON is not an image set.
    """
    if not uri.endswith(".json"):
        return ImageSet(images=[SetImage(uri=uri)])
    try:
        found = ImageSet.model_validate_json(read_bytes(uri))
    except ValidationError as error:
        raise ValueError(f"{uri}: not an image set: {error.errors()[0]['msg']}") from error
    folder = uri.rsplit("/", 1)[0]
    images = []
    for image in found.images:
        if "/" in image.uri or image.uri.startswith("."):
            raise ValueError(f"{uri}: image {image.uri!r} lies outside the set's own folder")
        images.append(image.model_copy(update={"uri": join(folder, image.uri)}))
    return found.model_copy(update={"images": images})


def picture_uri(uri: str, seen: str) -> str:
    """Where a picture of a source lies now.

    Args:
        uri: The source's.
        seen: Where the picture lay when it was looked at: its folder may have been moved since, so that only its name counts.
    """
    return join(uri.rsplit("/", 1)[0], seen.rsplit("/", 1)[-1]) if uri.endswith(".json") else uri


def encode_image_set(image_set: ImageSet) -> bytes:
    """Canonical JSON bytes."""
    return json.dumps(image_set.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode()


def commit_set(pictures: list[tuple[bytes, Declared | None]], generator: dict[str, Any], work: str) -> str:
    """Commits generated pictures under their sha256 and a set that names them, each only if absent; returns the set's file name in `synthetic/`."""
    images = []
    for picture, declared in pictures:
        name = f"{sha256_bytes(picture)}.jpg"
        commit(join(work, "synthetic", name), picture, exclusive=True)
        images.append(SetImage(uri=name, declared=declared))
    encoded = encode_image_set(ImageSet(images=images, generator=generator))
    commit(join(work, "synthetic", f"{sha256_bytes(encoded)}.json"), encoded, exclusive=True)
    return f"{sha256_bytes(encoded)}.json"


def content_sha256(uri: str) -> str:
    """Digest of a source's content: of the file, or of a set with all its images."""
    return content_digests(uri)[0]


def content_digests(uri: str) -> tuple[str, dict[str, str]]:
    """Digest of a source's content, and those of the images that it is made of, by their names in the source's folder."""
    own = _sha256_of(uri)
    if not uri.endswith(".json"):
        return own, {uri.rsplit("/", 1)[-1]: own}
    images = [(image.uri.rsplit("/", 1)[-1], _sha256_of(image.uri)) for image in read_image_set(uri).images]
    return sha256_bytes("".join([own, *(digest for _, digest in images)]).encode()), dict(images)


def _sha256_of(uri: str) -> str:
    return retried(lambda: with_reason(uri, lambda: sha256_file(uri)))  # in pieces: a film may be larger than the memory


def with_reason(uri: str, act: Callable[[], T]) -> T:
    """What `act` returns. Where a store does not allow it, its error says why: asked for what it knows of an object, a store answers without a word;
    asked for the object's first byte, it tells."""
    try:
        return act()
    except PermissionError:
        if not is_local(uri):
            filesystem, path = filesystem_of(uri)
            filesystem.cat_file(path, start=0, end=1)
        raise
