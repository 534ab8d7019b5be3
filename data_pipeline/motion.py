"""How faces move, and whether two tracks move alike at one offset in time: what stays of a clip that is compressed once more, scaled, cropped or cut.

A face's 68 landmarks, shifted and scaled to one place and size, and its blendshapes are compared by how they change within a second: what a crop or scale
moves is the same in every frame and cancels, and a face that does not move gives nothing that could agree. Two tracks agree at an offset as far as

    r = 2 sum(a . b) / sum(|a|^2 + |b|^2)        a, b: changes of the two at the same moment

goes: 1 for equal movement, about 0 for other moments of the same person. How sure that is grows with the moments n, as it does of a correlation:
evidence = atanh(r) sqrt(n). `python -m tests.benchmarks.copied_clips` gives the distributions that the constants are chosen by.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import scipy.fft
from threadpoolctl import threadpool_limits

from infra.console import each

LIKENESS = 0.7
"""Least r. Of copies of 8 s one in twenty has less than 0.79."""
EVIDENCE = 6.0
"""Least atanh(r) sqrt(n). Among 39,000 pairs of other moments of one man the most was 5.4."""
READ = ("pts", "track", "landmarks", "blendshapes")
"""What is read of observations."""
_SECONDS = 1.0
"""Over which a change is taken: over less, what compression adds counts for more; over much more, slow turns of the head look alike."""
_BLENDSHAPES = 1 / 25
"""Their weight against landmarks in units of the face's size: brings what one more compression does to both to one size."""
_STEP = 0.2
"""Seconds between two moments, more where less was looked at. Of one of two tracks half steps are compared too, as a copy may begin between two."""
_PHASES = (0.0, 0.5)
_LEAST = 5
"""Moments, under which an overlap is not looked at."""
_NEAR = 0.97
"""Share of what is asked for, from which single precision's answer is computed again."""
_MOST, _BLOCK = 128, 2**16
"""Tracks, and moments, of a block that is compared with another at once: a few hundred MB."""
Array = npt.NDArray[np.float32]


class Track(NamedTuple):
    """A face that is followed through a shot."""

    source: int
    start: tuple[int, ...]
    """Of each phase: number of its first moment."""
    changes: tuple[npt.NDArray[np.float16], ...]
    """Of each phase: (N, 188), moment by moment."""


class Agreement(NamedTuple):
    """How alike two tracks move at the offset of which the evidence is largest."""

    evidence: float
    like: float
    """r."""
    offset: int
    """Time of the second less that of the first, in half steps."""
    moments: int
    """In which they agree, each within what `LIKENESS` leaves on average."""


@dataclass(frozen=True)
class Clock:
    """When moments are, for a number of frames looked at a second."""

    fps: float

    @property
    def step(self) -> float:
        """Seconds from one to the next."""
        return max(_STEP, 1 / self.fps)

    @property
    def lag(self) -> int:
        """Steps over which a change is taken."""
        return max(1, round(_SECONDS / self.step))

    @property
    def least(self) -> int:
        """Frames, under which nothing can be said of a source."""
        return self.lag + _LEAST


def tracks_of(observed: pa.Table, source: int, clock: Clock) -> list[Track]:
    """The tracks of a part (`READ`) that last more than a second."""
    if not len(observed):  # a segment without a face
        return []
    points = _matrix(observed["landmarks"]).reshape(-1, 68, 2)
    points = points - points.mean(axis=1, keepdims=True)
    points /= np.maximum(np.sqrt((points**2).sum(axis=(1, 2), keepdims=True)), 1e-9)
    shown = np.hstack([points.reshape(-1, 136), _matrix(observed["blendshapes"]) * _BLENDSHAPES])
    times, numbers = np.asarray(observed["pts"]), np.asarray(observed["track"])
    found = []
    for number in np.unique(numbers):
        mine = np.flatnonzero(numbers == number)
        mine = mine[np.argsort(times[mine], kind="stable")]
        starts, changes = zip(*(_changes(times[mine], shown[mine], phase, clock) for phase in _PHASES), strict=True)
        if min(map(len, changes)):
            found.append(Track(source, starts, changes))
    return found


def keep_on_disk(tracks: Iterable[Track], out: BinaryIO) -> list[Track]:
    """The same tracks with their changes in a file that is open to be written and read, and mapped: 4 kB a second of video, of hundreds of hours in one
    component too much for memory.
    """
    kept, begins = list[tuple[int, tuple[int, ...], list[tuple[int, ...]]]](), 0
    for track in tracks:
        kept.append((track.source, track.start, [changes.shape for changes in track.changes]))
        for changes in track.changes:
            out.write(np.ascontiguousarray(changes).data)
    out.flush()
    if not kept:
        return []
    flat, found = np.memmap(out, np.float16, "r"), list[Track]()
    for source, start, shapes in kept:
        mapped = []
        for shape in shapes:
            mapped.append(flat[begins : begins + math.prod(shape)].reshape(shape))
            begins += math.prod(shape)
        found.append(Track(source, start, tuple(mapped)))
    return found


def _matrix(column: pa.ChunkedArray) -> Array:
    flat = np.asarray(column.combine_chunks().flatten(), np.float32)
    return flat.reshape(len(column), -1)


def _changes(times: npt.NDArray[np.float64], shown: Array, phase: float, clock: Clock) -> tuple[int, npt.NDArray[np.float16]]:
    """What is shown at whole steps, between two frames by both, less what was shown a second before; and the first one's number."""
    first, last = np.ceil(times[0] / clock.step - phase - 1e-6), np.floor(times[-1] / clock.step - phase + 1e-6)
    numbers = np.arange(first, last + 1)
    if len(numbers) <= clock.lag or len(times) < 2:
        return 0, np.zeros((0, shown.shape[1]), np.float16)
    wanted = (numbers + phase) * clock.step
    before = np.clip(np.searchsorted(times, wanted, side="right") - 1, 0, len(times) - 2)
    share = ((wanted - times[before]) / (times[before + 1] - times[before]))[:, None].astype(np.float32)
    there = shown[before] * (1 - share) + shown[before + 1] * share
    return int(first), (there[clock.lag :] - there[: -clock.lag]).astype(np.float16)


def compare_tracks(tracks: Sequence[Track]) -> Iterator[tuple[int, int, Agreement]]:
    """Numbers of two tracks of different sources that move alike.

    All offsets of a block's pairs are scored at once by Fourier transforms in single precision; what comes near is computed again, exactly. Time grows
    with the square of the tracks and with their length; memory is that of a block, and of the tracks where they lie in it (`keep_on_disk`).
    """
    order = sorted(range(len(tracks)), key=lambda n: (len(tracks[n].changes[0]), n))
    blocks = list(_blocks(order, tracks))
    pairs = [(mine, others) for number, mine in enumerate(blocks) for others in blocks[number:]]
    for mine, others in each("copies", pairs, "pairs of blocks of a component's tracks"):
        with threadpool_limits(1):  # of many small products threads would wait for each other
            found = _compare(mine, others, tracks)
        yield from found


def _compare(mine: Sequence[int], others: Sequence[int], tracks: Sequence[Track]) -> list[tuple[int, int, Agreement]]:
    """Those of two blocks, or of one with itself."""
    near = np.zeros((len(mine), len(others)), bool)
    for phase in range(len(_PHASES)):
        near |= _come_near([tracks[n].changes[0] for n in mine], [tracks[n].changes[phase] for n in others])
    found = []
    for a, b in np.argwhere(near).tolist():
        first, second = mine[a], others[b]
        if tracks[first].source != tracks[second].source and (others is not mine or a < b):
            agreed = agreement(tracks[first], tracks[second])
            if agreed.evidence >= EVIDENCE and agreed.like >= LIKENESS:
                found.append((first, second, agreed))
    return found


def _blocks(order: Sequence[int], tracks: Sequence[Track]) -> Iterator[list[int]]:
    block: list[int] = []
    for n in order:
        if block and (len(block) == _MOST or (len(block) + 1) * _size(2 * len(tracks[n].changes[0])) > _BLOCK):
            yield block
            block = []
        block.append(n)
    if block:
        yield block


def _size(moments: int) -> int:
    return 1 << max(4, (moments + 1).bit_length())


def _come_near(first: Sequence[npt.NDArray[np.float16]], second: Sequence[npt.NDArray[np.float16]]) -> npt.NDArray[np.bool_]:
    """Which pairs may have the evidence at some offset, (F, S)."""
    size = _size(max(map(len, first)) + max(map(len, second)))
    a, b = _spectrum(first, size), _spectrum(second, size)
    seen = _back(np.matmul(a.moves.conj(), b.moves.transpose(0, 2, 1)), size)
    squares, there = a.squares.conj()[:, :, None], a.there.conj()[:, :, None]
    whole = _back(squares * b.there[:, None] + there * b.squares[:, None], size)
    count = np.rint(_back(there * b.there[:, None], size)).astype(np.int16)
    needed = np.maximum(LIKENESS, np.tanh(EVIDENCE / np.sqrt(np.arange(1, size + 2)))).astype(np.float32) * _NEAR
    needed = np.r_[np.full(_LEAST, np.float32(2)), needed[_LEAST - 1 :]]  # under so many: never
    # below a share of all movement, single precision says nothing
    np.maximum(whole, 1e-4 * np.add.outer(a.energy, b.energy) + 1e-12, out=whole)
    whole *= needed[count]
    return np.asarray((2 * seen >= whole).any(axis=0))


def _back(product: npt.NDArray[np.complex64], size: int) -> Array:
    """Sums at every offset, (offsets, F, S)."""
    found: Array = scipy.fft.irfft(product, size, axis=0, overwrite_x=True)
    return found


class _Spectrum(NamedTuple):
    moves: npt.NDArray[np.complex64]
    """(frequencies, tracks, 188)"""
    squares: npt.NDArray[np.complex64]
    """Of the size of each change: (frequencies, tracks)."""
    there: npt.NDArray[np.complex64]
    """Of ones where the track is, likewise."""
    energy: Array


def _spectrum(moves: Sequence[npt.NDArray[np.float16]], size: int) -> _Spectrum:
    padded = np.zeros((size, len(moves), moves[0].shape[1]), np.float32)
    there = np.zeros((size, len(moves)), np.float32)
    for n, mine in enumerate(moves):
        padded[: len(mine), n] = mine
        there[: len(mine), n] = 1
    squares = np.einsum("tnd,tnd->tn", padded, padded)
    moves_of, squares_of, there_of = (scipy.fft.rfft(values, axis=0) for values in (padded, squares, there))
    return _Spectrum(moves_of, squares_of, there_of, squares.sum(axis=0))


def agreement(first: Track, second: Track) -> Agreement:
    """Of two tracks, whatever it is; of overlaps under `_LEAST` moments nothing is said."""
    best = Agreement(0.0, 0.0, 0, 0)
    a = first.changes[0].astype(np.float64)
    for phase, start, changes in zip(_PHASES, second.start, second.changes, strict=True):
        b = changes.astype(np.float64)
        product = a @ b.T
        squares = np.add.outer((a**2).sum(axis=1), (b**2).sum(axis=1))
        place = np.subtract.outer(-np.arange(len(a)), -np.arange(len(b))) + len(a) - 1
        seen, whole, count = (np.bincount(place.ravel(), values.ravel()) for values in (product, squares, np.ones_like(product)))
        like = np.where(count >= _LEAST, 2 * seen / np.maximum(whole, 1e-12), 0.0)
        evidence = np.arctanh(np.clip(like, 0, 0.9999)) * np.sqrt(count)
        n = int(evidence.argmax())
        if evidence[n] > best.evidence:
            later = n - len(a) + 1
            apart = np.diagonal(squares, later) - 2 * np.diagonal(product, later)
            agree = int((apart <= (1 - LIKENESS) * whole[n] / count[n]).sum())
            best = Agreement(float(evidence[n]), float(like[n]), 2 * (start + later - first.start[0]) + round(2 * phase), agree)
    return best
