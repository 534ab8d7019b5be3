"""Pictures as players show them: a video's header says how wide its pixels are, and how its picture is turned or mirrored. All sizes and places in this
project are those of that picture, whose pixels are square."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.decoder import DecodeError

_SQUARE = 0.01
"""So far from 1 a pixel's width by height may be and still be taken for square: programs that round a scaled picture's sides to even ones leave such shapes."""
_WIDEST = 4.0
"""Width by height, or height by width, beyond which no video's pixels are; the header is wrong then, and would ask for any amount of memory."""


def pixel_shape(stream: Any) -> float:
    """Width by height of a PyAV stream's pixels, by its container or else by its codec; 1 where neither says."""
    return float(stream.sample_aspect_ratio or 1)


def square_size(width: int, height: int, shape: float) -> tuple[int, int]:
    """Width and height of a picture when its pixels are made square: one side as it is, the other longer, so that nothing is thrown away."""
    if abs(shape - 1) <= _SQUARE:
        return width, height
    return (round(width * shape), height) if shape > 1 else (width, round(height / shape))


class Upright:
    """Makes PyAV's frames of one stream pictures.

    Raises:
        DecodeError: The shape that the header gives its pixels cannot be.
    """

    def __init__(self, stream: Any) -> None:
        from av.video.reformatter import VideoReformatter

        self._shape = pixel_shape(stream)
        if not 1 / _WIDEST <= self._shape <= _WIDEST:
            raise DecodeError(
                "decode",
                f"its header says that pixels are {self._shape:.3g} times as wide as tall, which cannot be; write it anew with square ones",
            )
        self._coded: float | None = None
        self._reformatter = VideoReformatter()
        self._ways: dict[int, npt.NDArray[np.float64]] = {}

    def check(self, stream: Any) -> None:
        """Refuses a stream in which pixels get another shape, as in recordings of several broadcasts. To be called after every frame that is decoded.

        Raises:
            DecodeError: They do.
        """
        shape = float(stream.codec_context.sample_aspect_ratio or 1)
        before, self._coded = self._coded or shape, shape
        if abs(shape / before - 1) > _SQUARE:
            raise DecodeError(
                "decode",
                f"the shape of its pixels changes from {before:.3g} to {shape:.3g} in the middle; cut it there, or write it anew with square ones",
            )

    def check_begin(self, path: str) -> None:
        """Takes the first picture of the file for the first one of the stream, where another is decoded first: a piece, or what is asked of a recording, may
        begin after its pixels changed shape, and the header has the shape from before. To be called before `check`."""
        import av

        with av.open(path) as probe, suppress(av.error.InvalidDataError):  # a head that is damaged says nothing
            stream = probe.streams.video[0]
            stream.thread_type = "NONE"
            if next(probe.decode(stream), None):
                self.check(stream)

    def __call__(self, frame: Any) -> npt.NDArray[np.uint8]:
        """A frame as RGB `(H, W, 3)` uint8 of square pixels, turned and mirrored as its header says."""
        width, height = square_size(frame.width, frame.height, self._shape)
        how = None if (width, height) == (frame.width, frame.height) else "BICUBIC"
        image = self._reformatter.reformat(frame, width, height, "rgb24", interpolation=how).to_ndarray()
        return _turned(image, self._way(frame))  # type: ignore[arg-type]

    def again(self, image: npt.NDArray[np.uint8], frame: Any) -> npt.NDArray[np.uint8]:
        """The same of a frame's picture `(H, W, 3)` that decord has turned by the header's angle; it mirrors nothing, and does not ask for pixels' shape."""
        import cv2

        coded = np.rot90(image, -_turns(frame))
        size = square_size(frame.width, frame.height, self._shape)
        if size != (frame.width, frame.height):
            coded = cv2.resize(coded, size, interpolation=cv2.INTER_CUBIC)  # type: ignore[assignment]
        return _turned(coded, self._way(frame))

    def _way(self, frame: Any) -> npt.NDArray[np.float64]:
        # asked once for each angle: PyAV's side data and its frame hold each other, and memory would fill until Python looks for such rings
        if frame.rotation not in self._ways:
            self._ways[frame.rotation] = _display_matrix(frame)
        return self._ways[frame.rotation]


def _turns(frame: Any) -> int:
    """Quarter turns to the left."""
    return round(frame.rotation / 90) % 4


def _display_matrix(frame: Any) -> npt.NDArray[np.float64]:
    """`(2, 2)`: where a step to the right in the coded picture leads (right, down), and where one down does."""
    try:
        given = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV does not know another kind that is beside it, and tells the angle alone
        angle = math.radians(frame.rotation)
        return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return np.eye(2) if given is None else np.frombuffer(given, np.int32).reshape(3, 3)[:2, :2].astype(np.float64)


def _turned(image: npt.NDArray[np.uint8], way: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """A picture `(H, W, 3)` put along a display matrix, to the nearest quarter turn."""
    (right, across), (along, down) = way
    if abs(across) + abs(along) > abs(right) + abs(down):
        image, right, down = image.swapaxes(0, 1), along, across
    elif right >= 0 and down >= 0:  # a copy would take longer than all else
        return image
    return np.ascontiguousarray(image[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1])
