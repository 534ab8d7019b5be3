"""Perception: faces, 68 landmarks, identity, head pose, expression and quality, each model loaded from a file path."""

from lato.faces.reader import LICENCES, MODEL_FILES, FaceReader, FaceReading

__all__ = ["LICENCES", "MODEL_FILES", "FaceReader", "FaceReading"]
