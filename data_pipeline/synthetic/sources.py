"""Generated sources behind one door: whatever makes pictures, what comes out are image sets that go through the same filters as all others.

A generated picture is committed by sha256 and is an input from then on: it is never made twice, and its maker's mood is in no fingerprint.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from data_pipeline.image_set import Declared, commit_set
from data_pipeline.places import diffusers, warps
from data_pipeline.sources import ContentHashes, naming
from data_pipeline.synthetic.anny_people import AnnyConfig, render_people
from data_pipeline.synthetic.diffusers_edit import DiffusersConfig, DiffusersEditor, WrongShapeError
from data_pipeline.synthetic.warp import WarpConfig, Warper
from data_pipeline.synthetic.weights import keep_weights
from data_pipeline.worklist import WorkItem
from infra.addresses import join
from infra.config import Config
from infra.console import Progress, say
from infra.environment import describe_machine
from infra.place import Place
from infra.pool import run_all
from infra.state import read_json
from infra.storage import commit, exists, read_bytes, sha256_json
from lato.faces import FaceReader
from lato.faces.detect import Box
from lato.pairs import decode_image

EDITS_VERSION = 3
"""Raise it when photos are edited in another way, or something else is declared of them: they are then made anew."""


_LIBRARIES = ("diffusers", "numpy", "opencv-contrib-python-headless", "torch", "transformers")
"""Those whose other versions may give other edits; a record says which they were made with. They are in no fingerprint: an edit that is there is an input."""


class SyntheticConfig(Config):
    """Generated sources; each is off where it is None."""

    anny: AnnyConfig | None = None
    """Drawn people with known pose, expression and landmarks."""
    warp: WarpConfig | None = None
    """The work list's photos, warped to the landmarks of other expressions."""
    diffusers: DiffusersConfig | None = None
    """The work list's photos, edited by a diffusers pipeline (FLUX.1-Kontext, InstructPix2Pix ...)."""


class PhotoEditor(Protocol):
    """Makes edited pictures of one photo."""

    def edit(self, photo: npt.NDArray[np.uint8], seed: int, box: Box | None) -> list[tuple[bytes, Declared | None]]:
        """RGB photo, of its largest face (that the box allows) -> JPEGs and what each should show; empty where the photo has no face to edit.

        Raises:
            WrongShapeError: The edits have another shape than the photo.
        """


def synthetic_sources(config: SyntheticConfig, given: list[WorkItem], models: Path, work: str) -> list[WorkItem]:
    """All generated sources, made where they are not there yet.

    Args:
        config: Which.
        given: The work list: photos in it are what `warp` and `diffusers` edit.
        models: Folder of the perception models.
        work: The build's folder.
    """
    items = render_people(config.anny, work) if config.anny else []
    photos = [item for item in given if item.kind == "image" and not item.uri.endswith(".json")]
    if config.warp:
        make = functools.partial(_make_warper, config.warp, models)
        items += edit_photos("warp", config.warp, make, photos, work, config.warp.workers, warps())
    if config.diffusers:
        make = functools.partial(_make_diffusers, config.diffusers, models, work)
        items += edit_photos("diffusers", config.diffusers, make, photos, work, config.diffusers.workers, diffusers(config.diffusers))
    return items


def _make_warper(config: WarpConfig, models: Path) -> PhotoEditor:
    return Warper(config, FaceReader.from_folder(models))


def _make_diffusers(config: DiffusersConfig, models: Path, work: str) -> PhotoEditor:
    editor = DiffusersEditor(config, FaceReader.from_folder(models))
    keep_weights(config.pipeline, work)
    return editor


def edit_photos(
    name: str,
    config: WarpConfig | DiffusersConfig,
    make: Callable[[], PhotoEditor],
    photos: list[WorkItem],
    work: str,
    workers: int,
    place: Place,
) -> list[WorkItem]:
    """Photos edited by one editor, as sources; what is there is not made again.

    Args:
        name: The editor's, in source ids.
        config: Its settings.
        make: Makes it, where it works.
        photos: What to edit.
        work: The build's folder.
        workers: Ray actors; 0 works here.
        place: What each takes.

    Raises:
        UserError: A photo cannot be read, and it is the machine's fault, or that of a server that stays busy.
    """
    settings = config.model_dump(mode="json", exclude={"workers", "gpus", "runtime_env", "licence"})
    records, hashes = {}, ContentHashes(work)
    contents = hashes.of_all(photos)
    for photo in photos:
        content = contents[photo.source_id]
        if content is None:
            continue  # the analysis says so of the photo itself
        made_of = [EDITS_VERSION, settings, content, *([photo.box] if photo.box else [])]
        records[photo.source_id] = join(work, "synthetic", f"{name}_{sha256_json(made_of)[:24]}.json")
    hashes.keep()
    first = {
        record: name for name, record in sorted(records.items(), reverse=True)
    }  # of equal photos one is edited: by name, not by who is quicker
    mine = [photo for photo in photos if first.get(records.get(photo.source_id, "")) == photo.source_id]
    todo = [(photo, records[photo.source_id]) for photo in mine if not exists(records[photo.source_id])]
    progress = Progress(name, len(todo), "photos")
    for done in run_all(functools.partial(_Worker, name, make, work, config.seed), todo, workers, place):
        progress.advance()
        if not done.result:
            records = {source: record for source, record in records.items() if record != done.job[1]}
    items, refused = [], {}
    for photo in photos:
        record = read_json(records[photo.source_id], ("set",)) if photo.source_id in records else {}
        if "refused" in record:
            refused[photo.source_id] = record["refused"]
        made = record.get("set")
        if made:
            columns = {
                "source_id": f"{photo.source_id}_{name}",
                "uri": join(work, "synthetic", made),
                "group": photo.group or photo.source_id,
            }
            items.append(
                photo.model_copy(update={**columns, "attributes": {**photo.attributes, "made_from": photo.source_id, "made_by": name}})
            )
    if refused:
        source, reason = next(iter(refused.items()))
        say(
            f"  synthetic.{name}: {len(refused)} of {len(photos)} photos have no edits, as these came out in another shape ({source}: {reason})"
        )
    return items


class _Worker:
    def __init__(self, name: str, make: Callable[[], PhotoEditor], work: str, seed: int) -> None:
        self._name, self._editor, self._work, self._seed = name, make(), work, seed

    def run(self, job: tuple[WorkItem, str]) -> bool:
        """Edits one photo and records the set it gave, or that it gave none; whether there is a record: none of a photo that cannot be read any more."""
        item, record = job
        try:
            with naming(item.uri):
                data = read_bytes(item.uri)
        except OSError:  # it is gone since it was hashed, or a store does not give it: the analysis says so
            return False
        try:
            photo = decode_image(data, item.uri)
        except ValueError:  # the analysis says so of the photo itself
            commit(record, json.dumps({"set": None}).encode(), exclusive=True)
            return True
        try:
            edited = self._editor.edit(photo, int(sha256_json([self._seed, item.source_id])[:8], 16), item.box)
        except WrongShapeError as error:
            commit(record, json.dumps({"set": None, "refused": str(error), "with": describe_machine(_LIBRARIES)}).encode(), exclusive=True)
            return True
        made = commit_set([(data, None), *edited], {"name": self._name, "of": item.source_id}, self._work) if edited else None
        commit(record, json.dumps({"set": made, "with": describe_machine(_LIBRARIES)}).encode(), exclusive=True)
        return True
