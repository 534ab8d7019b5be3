"""Audit: a seeded sample of accepted and just-rejected pairs, labelled by a person in a browser. Labels are an input that beats filters."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from array import array
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.beside import Beside
from data_pipeline.candidates import find_candidates, read_candidate_pieces, take_candidates
from data_pipeline.intervals import wilson
from data_pipeline.pairing import AXES
from data_pipeline.published import read_index, read_manifest_table
from data_pipeline.rules import LIMITS, VERIFIERS, PairingConfig
from data_pipeline.sheet import Sources, Unreadable
from data_pipeline.versions import showing, whole_version
from data_pipeline.why import pairing_config
from data_pipeline.words import VERDICTS_SAID, instruction_of, missed_by
from infra.addresses import join
from infra.errors import UserError
from infra.state import INPUT, read_rows
from infra.storage import commit

_AUDITED = LIMITS | VERIFIERS
_WHOLE = {
    "no edit of ours": "Does another expression, or a turn of the head by about 30 or 60 degrees, and nothing else, lead from left to right?",
    "near-duplicate": "Does the pair above show the edit on a face that the accepted ones below it do not show already?",
}
"""Verdicts without a threshold, of which the sample is drawn from all (of near-duplicates, all that can be asked of: `beside`); what is asked of their pairs.
Their labels are counted, and decide nothing but that a near-duplicate which is called good stays."""
_CHOSEN_BY = [
    *("key", "verdict", "source_id", "target_id", "person", "edit", "split"),
    *(f"step_{axis}" for axis in AXES),
    *dict.fromkeys(score for score, _, _ in _AUDITED.values()),
]
"""What the sample is chosen by."""
LABELS = "labels.jsonl"
_TEXT = "text/plain; charset=utf-8"
_TEMPLATE = Path(__file__).parent / "templates/audit.html.jinja"


@dataclass(frozen=True)
class Entry:
    """A pair to be labelled: its key, stratum (`accepted`, or what refused it), instruction or question, why it was refused, and pairs to compare it with."""

    key: str
    stratum: str
    instruction: str
    score: str
    beside: tuple[str, ...] = ()


def choose(work: str, version: str, per_stratum: int, seed: int) -> list[Entry]:
    """The sample: of accepted pairs by sha256 of seed and key, of each filter's refused ones those nearest to its threshold among a seeded tenth, of what has
    no threshold (no edit of ours, near-duplicates) any.

    The strata are mixed, by that sha256 too: who labels does not know what the build decided, and who stops early has labelled some of each.
    """
    folder = join(work, "versions", version)
    config, said, beside = pairing_config(folder), _instructions(folder), Beside(folder)

    def drawn(row: dict[str, Any]) -> bytes:
        return hashlib.sha256(f"{seed}/{row['key']}".encode()).digest()

    strata: dict[str, _Stratum] = defaultdict(_Stratum)
    rows = (row for piece in read_candidate_pieces(folder, _CHOSEN_BY) for row in piece.to_pylist())
    for number, row in enumerate(rows):
        if row["verdict"] == "near-duplicate" and not beside.of(row):
            continue
        if row["verdict"] in _WHOLE or ((row["verdict"] == "accepted" or row["verdict"] in _AUDITED) and instruction_of(row)):
            score, _, sign = _AUDITED.get(row["verdict"], (None, None, 0))  # of the others, without an instruction nobody could judge it
            strata[row["verdict"]].add(number, drawn(row), -row[score] * sign if score else 0.0)
    chosen = take_candidates(folder, [number for name in sorted(strata) for number in strata[name].choose(per_stratum, name in _AUDITED)])
    return [_entry(row, config, said, beside) for row in sorted(chosen, key=drawn)]


@dataclass(frozen=True)
class _Stratum:
    """The candidates of one stratum: 24 bytes each, as there may be ten millions."""

    numbers: array[int] = field(default_factory=lambda: array("q"))
    """In the table."""
    drawn: array[int] = field(default_factory=lambda: array("Q"))
    """The first 8 bytes of their digests."""
    missed: array[float] = field(default_factory=lambda: array("d"))
    """Less is nearer to the threshold."""

    def add(self, number: int, digest: bytes, missed: float) -> None:
        self.numbers.append(number)
        self.drawn.append(int.from_bytes(digest[:8]))
        self.missed.append(missed)

    def choose(self, count: int, nearest: bool) -> list[int]:
        """Numbers of the first that are drawn, or of the nearest to the threshold among the first tenth."""
        order = np.argsort(np.array(self.drawn), kind="stable")
        if nearest:
            tenth = order[: max(count, len(order) // 10)]
            order = tenth[np.argsort(np.array(self.missed)[tenth], kind="stable")]
        return [self.numbers[place] for place in order[:count]]


def _entry(row: dict[str, Any], config: PairingConfig, said: dict[str, str], beside: Beside) -> Entry:
    verdict = row["verdict"]
    if verdict in _WHOLE:
        return Entry(row["key"], verdict, _WHOLE[verdict], VERDICTS_SAID[verdict], beside.of(row) if verdict == "near-duplicate" else ())
    why = "" if verdict == "accepted" else missed_by(row, verdict, config)
    return Entry(row["key"], verdict, said.get(row["key"]) or str(instruction_of(row)), why)


def _instructions(folder: str) -> dict[str, str]:
    """Key of a sample -> its instruction, which a language model may have written."""
    table = read_manifest_table(folder)
    return dict(zip(table["key"].to_pylist(), table["instruction"].to_pylist(), strict=True)) if len(table) else {}


def read_labels(work: str) -> dict[str, bool]:
    """Key -> good or bad, of what decides in the next build; the last word on a key holds. That a pair has no edit, or shows what another shows, says nothing
    of the pair itself."""
    last = {row["key"]: row for row in _read_rows(work)}
    return {key: row["good"] for key, row in last.items() if row["stratum"] not in _WHOLE}


def read_labelled_edits(work: str) -> dict[str, str]:
    """Key -> the edit that was shown, of those labels that say it: another look at a source may read another edit on the same two faces."""
    last = {row["key"]: row for row in _read_rows(work)}
    return {key: row["edit"] for key, row in last.items() if row.get("edit")}


def read_distinct(work: str) -> frozenset[str]:
    """Keys of near-duplicates that were called good: such a pair stays, and the other goes, unless it is published or called good too. All else decides on it
    as on any pair: nobody was asked whether it is good in itself."""
    last = {row["key"]: row for row in _read_rows(work)}
    return frozenset(key for key, row in last.items() if row["good"] and row["stratum"] == "near-duplicate")


def _read_rows(work: str) -> list[dict[str, Any]]:
    return read_rows(join(work, LABELS), ("key", "good", "stratum"), INPUT)


def add_label(work: str, key: str, good: bool, stratum: str, seed: int, edit: str | None = None) -> None:
    """Records what a person said of a pair, and of which edit."""
    uri = join(work, LABELS)
    rows = [*_read_rows(work), {"key": key, "good": good, "stratum": stratum, "seed": seed, "edit": edit}]
    commit(uri, "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows).encode())


def summarize(work: str) -> list[tuple[str, int, int, float, float, float]]:
    """Stratum -> (labelled, good, rate, low, high): precision for `accepted`, false-reject rate for a filter, with Wilson intervals."""
    last = {row["key"]: row for row in _read_rows(work)}
    totals: dict[str, list[bool]] = defaultdict(list)
    for row in last.values():
        totals[row["stratum"]].append(row["good"])
    return [
        (name, len(found), sum(found), sum(found) / len(found), *wilson(sum(found), len(found))) for name, found in sorted(totals.items())
    ]


def serve_audit(work: str, version: str, per_stratum: int, seed: int, port: int) -> ThreadingHTTPServer:
    """A page on 127.0.0.1 that shows one pair after another and takes labels; the caller runs `serve_forever`.

    Raises:
        UserError: There is no such version, it is a view, nothing is to be labelled, or the port is taken.
    """
    index = read_index(whole_version(work, version))
    entries = choose(work, version, per_stratum, seed)
    if not entries:
        raise UserError(f"version {version} has no candidates to label")
    page = _Page(work, version, index, entries, seed)
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), page.handler())
    except OSError as error:
        raise UserError(f"port {port}: {error.strerror}. Choose another: --port") from error


class _Page:
    """What the browser asks for: the page, a pair's picture, and to keep a label."""

    def __init__(self, work: str, version: str, index: dict[str, Any], entries: list[Entry], seed: int) -> None:
        self._work, self._version, self._index, self._entries, self._seed = work, version, index, entries, seed
        self._folder = join(work, "versions", version)
        self._beside = {entry.key: entry.beside for entry in entries}
        wanted = {key for entry in entries for key in (entry.key, *entry.beside)}
        found = find_candidates(self._folder, ["key"], lambda piece: pc.is_in(piece["key"], pa.array(sorted(wanted), pa.string())))
        self._rows = {row["key"]: row for row in found}
        self._sources = Sources(work)
        self._lock = threading.Lock()
        self._html = jinja2.Template(_TEMPLATE.read_text(), autoescape=True)

    def show(self) -> bytes:
        labels = {row["key"]: row["good"] for row in _read_rows(self._work)}
        entries = [asdict(entry) | {"label": labels.get(entry.key)} for entry in self._entries]
        return self._html.render(version=self._version, entries=entries, rates=summarize(self._work)).encode()

    def picture(self, key: str, landmarks: bool) -> bytes | None:
        if key not in self._rows:
            return None
        self._sources.lost.clear()  # a server may answer again: somebody waits for one picture at a time
        try:
            shown = [self._rows[name] for name in (key, *self._beside.get(key, ()))]
            image = np.vstack([self._sources.draw(row, 384, landmarks) for row in shown])
        except Unreadable as error:
            image = np.full((120, 480, 3), 255, np.uint8)
            cv2.putText(image, str(error), (8, 60), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (160, 0, 0), 2)
        return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()

    def keep(self, body: bytes) -> None:
        """Keeps a label.

        Raises:
            ValueError: It is none.
            UserError: It cannot be written, somebody is just being forgotten, or the version is not the one of this page any more.
        """
        given = json.loads(body)
        if not isinstance(given, dict) or not isinstance(given.get("good"), bool):
            raise ValueError('expected {"key": ..., "good": true or false}')
        entry = next((entry for entry in self._entries if entry.key == given.get("key")), None)
        if entry is None:
            raise ValueError(f"no pair of this page is {given.get('key')!r}")
        with self._lock, showing(self._folder, self._index, "lato data audit"):
            add_label(self._work, entry.key, given["good"], entry.stratum, self._seed, self._rows[entry.key]["edit"])

    def handler(self) -> type[BaseHTTPRequestHandler]:
        page = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self._refused():
                    return
                try:
                    if self.path == "/":
                        self._answer(200, "text/html; charset=utf-8", page.show())
                    elif self.path.startswith("/pair/") and (found := self._picture()):
                        self._answer(200, "image/jpeg", found)
                    else:
                        self._answer(404, _TEXT, b"not here")
                except UserError as error:
                    self._answer(500, _TEXT, str(error).encode())

            def do_POST(self) -> None:
                if self._refused():
                    return
                # a form of another site cannot send this type: labels come from this page alone
                if self.path != "/label" or self.headers.get("Content-Type") != "application/json":
                    self._answer(404, _TEXT, b"not here")
                    return
                try:
                    length = min(max(0, int(self.headers.get("Content-Length") or 0)), 10_000)
                    page.keep(self.rfile.read(length))
                except (ValueError, RecursionError) as error:  # brackets in brackets without end
                    self._answer(400, _TEXT, f"not a label: {error}".encode())
                except (UserError, OSError) as error:
                    self._answer(500, _TEXT, f"the label is not kept: {error}".encode())
                else:
                    self._answer(200, _TEXT, b"kept")

            def _refused(self) -> bool:
                """Whether another site asks: one whose name leads to this machine (DNS rebinding) sends that name, and would else see faces and label. The port
                is not asked: whoever forwards one from another machine may give it another number."""
                host, port = self.headers.get("Host", ""), self.connection.getsockname()[1]
                ours = re.fullmatch(r"(127\.0\.0\.1|localhost)(:\d{1,5})" + ("?" if port == 80 else ""), host)
                if ours and self.headers.get("Origin", f"http://{host}") == f"http://{host}":
                    return False
                self._answer(
                    403,
                    _TEXT,
                    f"this page is http://127.0.0.1:{port}/ (or localhost, of any port that leads here), and answers to no other name".encode(),
                )
                return True

            def _picture(self) -> bytes | None:
                key, _, how = self.path.removeprefix("/pair/").partition("?")
                return page.picture(key, landmarks=how != "plain")

            def _answer(self, status: int, kind: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Content-Security-Policy", "frame-ancestors 'none'")
                try:
                    self.end_headers()
                    self.wfile.write(body)
                except ConnectionError:
                    self.close_connection = True  # the browser went on to another picture; what it sent was kept before

            def log_message(self, format: str, *args: Any) -> None:
                """Says nothing of each request."""

        return Handler
