"""What pages for people call things: scores with their units, verdicts in a sentence, an edit as an instruction."""

from __future__ import annotations

from typing import Any

from data_pipeline.pairing import AXES, EXPRESSIONS
from data_pipeline.rules import EDITS, LIMITS, VERIFIERS, PairingConfig
from lato.edits import MAX_TURN, Edit, instruction_for

SCORES_SAID = {
    "similarity": "likeness of the two faces (cosine)",
    "sharpness": "sharpness (variance of the Laplacian)",
    "noise": "noise (grey levels)",
    "clipped": "over- or underexposed pixels (share)",
    "blockiness": "codec blocks (ratio of steps)",
    "letterbox": "black bars (share of the frame)",
    "upscale": "enlargement to 512 px (times)",
    "padding": "crop outside the frame (share)",
    "tilt": "roll of the head (degrees)",
    "occlusion": "two landmark readings apart (eye distances)",
    "writing": "text on and around the face (share)",
    "expression_strength": "strength of the expression (0 to 1)",
    "agreement": "what the second network gives to the expression (0 to 1)",
    "intensity_gap": "change of intensity within one expression (0 to 1)",
    "pose_miss": "miss of a 30 degree step (degrees)",
    "declared_miss": "miss of the pose asked for (degrees)",
    "background": "likeness of backgrounds (0 to 1)",
    "clothing": "likeness of clothes (0 to 1)",
}
"""Score -> its name and unit."""

VERDICTS_SAID = {
    "accepted": "became samples",
    "expression verifier": "a generated face is read as another expression than its maker was asked for",
    "pose discriminator": "a generated face is turned otherwise than its maker was asked for",
    "no edit of ours": "no instruction leads from one face to the other: neither another expression nor a pose step near a multiple of 30 degrees at like intensity",
    "expression not verifiable": "leads to an expression that the verifier does not read well enough",
    "expression unclear": "the expression shows too weakly",
    "expression not confirmed": "a second network does not see the expression that was read",
    "identity": "the two faces are too unlike to be one person",
    "blurred": "not sharp enough",
    "noisy": "too much noise",
    "badly exposed": "too many pixels black or white",
    "blocky": "codec blocks show",
    "letterboxed": "black bars take too much of the frame",
    "occluded": "two landmark models disagree: something covers the face",
    "writing": "text lies over the face or beside it",
    "too small": "the face would be enlarged too much",
    "cut off": "the crop reaches out of the frame",
    "tilted": "the head is tilted too far",
    "other background": "two photos, not before one background",
    "other clothes": "two photos, not in the same clothes",
    "held out": "shows somebody, or a file, of an evaluation set",
    "labelled bad": "a person said so in the audit",
    "split conflict": "would tie people of different splits of the extended version, or a merge took it out of that",
    "bridge": "its track alone would join two large groups of people",
    "near-duplicate": "looks like a pair that is accepted, or is of a source that shows what another shows",
    "quota": "good, but the person, source or edit has its share",
    "cell quota": "good, but its cell of the whole dataset is full",
    "render failed": "its crop could not be cut",
    "pose step": "the turn between the two faces is not near a multiple of 30 degrees (no edit of ours)",
    "like intensity": "one expression shows more strongly on one face than on the other (no edit of ours)",
}
"""Verdict, or what an edit asks -> what it says of a pair."""


def limit_said(verdict: str, config: PairingConfig) -> str:
    """What a filter asks for: `at least 0.45`."""
    _, name, sign = (LIMITS | VERIFIERS | EDITS)[verdict]
    return f"{'at least' if sign > 0 else 'at most'} {getattr(config, name):g}"


def missed_by(row: dict[str, Any], verdict: str, config: PairingConfig) -> str:
    """Why a filter refused a candidate: its score beside the threshold, or the expressions that were read."""
    if verdict == "expression verifier":
        return f"reads as {row['from_expression']}, then {row['to_expression']}"
    score = (LIMITS | VERIFIERS)[verdict][0]
    return f"{SCORES_SAID[score]}: {row[score]:.3g}, needs {limit_said(verdict, config)}"


def instruction_of(row: dict[str, Any]) -> str | None:
    """A candidate's edit as a sentence, as its sample would have it; None where no edit of ours leads from source to target."""
    steps = {axis: int(row[f"step_{axis}"]) for axis in AXES}
    if not row["edit"] or max(abs(step) for step in steps.values()) > MAX_TURN:
        return None
    word, _, intensity = row["edit"].split(", ")[0].partition(" ")
    face = {"expression": word, "intensity": intensity or "plain"} if word in EXPRESSIONS else {}
    return instruction_for(Edit.model_validate(face | steps), row["key"], row["split"] or "train").text
