"""The `fer` network's opinion of an expression: 64 x 64 grey in, seven scores out. A second opinion beside the verifier (`expression.py`), never in its place.

It was trained on FER2013 and hardly ever says disgust.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from lato.edits import Expression

_INPUT = 64
_MARGIN = 1.3
"""Side of the square it looks at, in units of the landmarks' extent."""
_ORDER = ("angry", "disgusted", "fearful", "happy", "sad", "surprised", "neutral")
"""Of its outputs."""
_TO_OURS = [_ORDER.index(expression.value) for expression in Expression]


class FerNetwork:
    """Scores the expression of a face whose eyes are level."""

    def __init__(self, interpreter: Any) -> None:
        self._interpreter = interpreter
        self._input = interpreter.get_input_details()[0]["index"]
        self._output = interpreter.get_output_details()[0]["index"]

    @classmethod
    def from_file(cls, path: Path) -> FerNetwork:
        """Loads a TFLite file.

        Raises:
            FileNotFoundError: There is no such file.
        """
        from ai_edge_litert.interpreter import Interpreter

        if not Path(path).is_file():
            raise FileNotFoundError(f"fer network: no file at {path}")
        interpreter = Interpreter(model_path=str(path), num_threads=1)
        interpreter.allocate_tensors()
        return cls(interpreter)

    def score(self, image: npt.NDArray[np.uint8], landmarks: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Scores `(7,)` in the order of `Expression`, which sum to 1, of the face at landmarks `(68, 2)` in an RGB image."""
        low, high = np.min(landmarks, axis=0), np.max(landmarks, axis=0)
        side = max(round(_MARGIN * float((high - low).max())), 1)
        centre = (float((low + high)[0] / 2), float((low + high)[1] / 2))
        patch = cv2.getRectSubPix(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (side, side), centre)
        grey = cv2.resize(patch, (_INPUT, _INPUT), interpolation=cv2.INTER_AREA).astype(np.float32)
        self._interpreter.set_tensor(self._input, ((grey / 255 - 0.5) * 2).reshape(1, _INPUT, _INPUT, 1))
        self._interpreter.invoke()
        return np.asarray(self._interpreter.get_tensor(self._output), np.float32).reshape(7)[_TO_OURS]
