"""Rewriting of instructions by a language model behind an OpenAI-compatible endpoint; only what reads back as the same edit is taken.

Answers are kept by what was asked: a rerun asks nothing again, and the dataset's bytes do not depend on the model's mood.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from infra.backoff import passes, wait
from infra.config import Config
from infra.errors import UserError
from infra.state import read_json
from infra.storage import commit, exists, join, sha256_bytes, sha256_json
from lato.edits import Edit, Instruction, Rewriting, instruction_for, parse_instruction, unread_words

_PROMPT = (
    "Rewrite this instruction for a photo editor in your own words. Keep its meaning exactly: the same expression and intensity, the same directions and "
    "degrees. Answer with the one sentence only.\n\n{text}"
)
_TIMEOUT = 60.0
_TRIES = 5
_PAUSE = 1.0
"""Seconds before the second try, less a random part; each further waits twice as long."""
_AT_ONCE = 8
"""Requests under way."""


class RewriteConfig(Config):
    """How instructions are rewritten."""

    endpoint: str | None = None
    """Base address of an OpenAI-compatible API (`http://127.0.0.1:8000/v1`); None leaves the templates' text. The key is read from `$LATO_API_KEY`."""
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct"
    """Name of the model there."""
    seed: int = 0
    """Another seed, other answers."""


class Rewriter:
    """Writes instructions, rewritten where that is asked for and goes well."""

    def __init__(self, config: RewriteConfig, work: str) -> None:
        self._config, self._work = config, work
        self._seen: Counter[str] = Counter()

    def instruction(self, edit: Edit, key: str, split: str) -> Instruction:
        """The instruction of a sample.

        Raises:
            UserError: The endpoint does not answer.
        """
        written = instruction_for(edit, key, split)
        if self._config.endpoint is None:
            return written
        answer = self._ask(written.text, key)
        try:
            same = answer != "" and parse_instruction(answer) == edit and not unread_words(answer)
        except ValueError:
            same = False
        self._seen["rewritten" if same else "refused: not the same edit"] += 1
        return Instruction(answer, written.template, self._rewriting(written.text, key)) if same else written

    def ask(self, wanted: Iterable[tuple[Edit, str, str]]) -> None:
        """Asks for the instructions of many samples (edit, key, split), some at a time; `instruction` then finds the answers.

        Raises:
            UserError: The endpoint does not answer.
        """
        if self._config.endpoint is not None:
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                for done in [pool.submit(self._ask, instruction_for(*one).text, one[1]) for one in wanted]:
                    try:
                        done.result()
                    except UserError:
                        pool.shutdown(wait=True, cancel_futures=True)
                        raise

    def counts(self) -> list[dict[str, Any]]:
        """Funnel rows: how many were rewritten, and how many answers were refused."""
        return [{"step": "instructions", "name": name, "count": count} for name, count in sorted(self._seen.items())]

    def _rewriting(self, text: str, key: str) -> Rewriting:
        seed = int(sha256_bytes(f"{self._config.seed}/{key}".encode())[:8], 16) % 2**31  # samples of one text get texts of their own
        return Rewriting(model=self._config.model, prompt=_PROMPT.format(text=text), seed=seed)

    def _ask(self, text: str, key: str) -> str:
        how = self._rewriting(text, key)
        asked = {
            "model": how.model,
            "seed": how.seed,
            "temperature": 0.7,
            "max_tokens": 120,
            "messages": [{"role": "user", "content": how.prompt}],
        }
        uri = join(self._work, "rewrites", f"{sha256_json(asked)}.json")
        if not exists(uri):
            commit(uri, json.dumps({"answer": self._post(asked)}).encode(), exclusive=True)
        return str(read_json(uri, ("answer",))["answer"])

    def _post(self, asked: dict[str, Any]) -> str:
        headers = {"Content-Type": "application/json"}
        if os.environ.get("LATO_API_KEY"):
            headers["Authorization"] = f"Bearer {os.environ['LATO_API_KEY']}"
        request = urllib.request.Request(f"{str(self._config.endpoint).rstrip('/')}/chat/completions", json.dumps(asked).encode(), headers)
        error: Exception | None = None
        for attempt in range(_TRIES):
            if attempt:
                wait(attempt, _PAUSE)
            try:
                with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
                    return " ".join(str(json.load(answer)["choices"][0]["message"]["content"]).split())
            except urllib.error.HTTPError as failed:
                error = failed
                if not passes(failed):  # it will not be otherwise the next time
                    break
            except (OSError, ValueError, LookupError, TypeError) as failed:  # no answer, or none that can be read
                error = failed
        raise UserError(
            f"instructions.endpoint: {self._config.endpoint} gave no answer in {attempt + 1} tries ({error}). What was answered stands; run the same command again."
        )
