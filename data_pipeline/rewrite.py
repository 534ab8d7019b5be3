"""Rewriting of instructions by a VLM behind an OpenAI-compatible endpoint, which is shown the source; only what reads back as the same edit is taken, and what
no text of the other side of the split says: none is shared between test and the rest.

Answers are kept by what was asked: a rerun asks nothing again, and the dataset's bytes do not depend on the model's mood.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, NoReturn

from pydantic import field_validator

from infra.addresses import join
from infra.backoff import passes, wait
from infra.config import Config
from infra.console import each, say
from infra.errors import UserError
from infra.state import read_json
from infra.storage import commit, exists, read_bytes, sha256_bytes, sha256_json
from lato.edits import Edit, Instruction, Rewriting, instruction_for, parse_instruction, plain_words, uses_template
from lato.instruction_words import unread_words
from lato.pairs import Split

_PROMPT = (
    "Rewrite this instruction for a photo editor in your own words{seen}. Keep its meaning exactly: the same expression and intensity, the same directions and "
    "degrees. Answer with the one sentence only.\n\n{text}"
)
_SEEN = "; the picture is the photo, and you may say who is in it (the man, the woman)"
_TIMEOUT = 60.0
_TRIES = 5
_PAUSE = 1.0
"""Seconds before the second try, less a random part; each further waits twice as long."""
_AT_ONCE = 8
"""Requests under way."""


class _NowhereElse(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the key, the text and the picture are for the host that was named."""

    def redirect_request(self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> NoReturn:
        """Raises `HTTPError`."""
        raise urllib.error.HTTPError(req.full_url, code, f"it leads on to {newurl}, which is sent nothing", headers, fp)


_OPENER = urllib.request.build_opener(_NowhereElse)


class RewriteConfig(Config):
    """How instructions are rewritten."""

    endpoint: str | None = None
    """Base address of an OpenAI-compatible API (`http://127.0.0.1:8000/v1`); None leaves the templates' text. The key is read from `$LATO_API_KEY`."""
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct"
    """Name of the model there."""
    seed: int = 0
    """Another seed, other answers."""
    picture: bool = True
    """Whether it is shown each sample's source, so that faces go to the endpoint; false for a model that reads text alone."""

    @field_validator("endpoint")
    @classmethod
    def _is_address(cls, endpoint: str | None) -> str | None:
        try:
            where = urllib.parse.urlsplit("http://none" if endpoint is None else endpoint)
            good = where.scheme in ("http", "https") and bool(where.hostname) and where.port != 0
        except ValueError:
            good = False
        if not good:
            raise ValueError("expected http://host[:port]/..., or https")
        return endpoint


class Wanted(NamedTuple):
    """A sample that needs an instruction."""

    edit: Edit
    key: str
    split: Split
    picture: str
    """Where its source's crop lies; the name is a hash of what it shows."""


class Rewriter:
    """Writes instructions, rewritten where that is asked for and goes well."""

    def __init__(self, config: RewriteConfig, work: str, published: Iterable[tuple[str, str]] = ()) -> None:
        """`published`: split and text of samples that stand already, which new ones are held against too."""
        self._config, self._work = config, work
        self._said = {test: {plain_words(text) for split, text in published if (split == "test") == test} for test in (True, False)}
        self._seen: Counter[str] = Counter()

    def write(self, wanted: Sequence[Wanted]) -> dict[str, Instruction]:
        """Key -> instruction. A text of test is held against all others, so all are given at once.

        Raises:
            UserError: The endpoint does not answer.
        """
        written = {one.key: instruction_for(one.edit, one.key, one.split) for one in wanted}
        if self._config.endpoint is None:
            return written
        if self._config.picture:
            say(f"  instructions: {self._config.endpoint} is shown the pictures of {len(wanted)} samples' sources")
        answers = self._ask_all(wanted, written)
        for one in sorted(wanted, key=lambda one: one.split == "test"):  # these are held against all others
            answer, test = answers[one.key], one.split == "test"
            verdict = self._judge(answer, one.edit, test)
            self._seen[verdict] += 1
            if verdict == "rewritten":
                self._said[test].add(plain_words(answer))
                before = written[one.key]
                written[one.key] = Instruction(answer, before.template, self._rewriting(before.text, one.key))
        return written

    def _judge(self, answer: str, edit: Edit, test: bool) -> str:
        try:
            same = answer != "" and parse_instruction(answer) == edit and not unread_words(answer)
        except ValueError:
            same = False
        if not same:
            return "refused: not the same edit"
        shared = plain_words(answer) in self._said[not test] or uses_template(answer, edit, "train" if test else "test")
        return "refused: shared between test and the rest" if shared else "rewritten"

    def _ask_all(self, wanted: Sequence[Wanted], written: dict[str, Instruction]) -> dict[str, str]:
        """Key -> answer, some asked at a time."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            try:
                asked = {one.key: pool.submit(self._ask, written[one.key].text, one.key, one.picture) for one in wanted}
                return {key: done.result() for key, done in each("rewrite", list(asked.items()), "samples")}
            except BaseException:  # Ctrl-C too: what waits is not asked, what is being asked is waited for and kept
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def counts(self) -> list[dict[str, Any]]:
        """Funnel rows: how many were rewritten, and how many answers were refused."""
        return [{"step": "instructions", "name": name, "count": count} for name, count in sorted(self._seen.items())]

    def _rewriting(self, text: str, key: str) -> Rewriting:
        seed = int(sha256_bytes(f"{self._config.seed}/{key}".encode())[:8], 16) % 2**31  # samples of one text get texts of their own
        prompt = _PROMPT.format(text=text, seen=_SEEN if self._config.picture else "")
        return Rewriting(model=self._config.model, prompt=prompt, seed=seed, picture=self._config.picture)

    def _ask(self, text: str, key: str, picture: str) -> str:
        how = self._rewriting(text, key)
        named = sha256_json(how.model_dump() | {"picture": picture.rsplit("/", 1)[-1] if how.picture else None})
        uri = join(self._work, "rewrites", f"{key}.{named}.json")
        if not exists(uri):
            commit(uri, json.dumps({"answer": self._post(_request(how, picture))}).encode(), exclusive=True)
        return str(read_json(uri, ("answer",))["answer"])

    def _post(self, asked: dict[str, Any]) -> str:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("LATO_API_KEY", "").strip():  # a secret that is read from a file ends with its line
            if not (key.isascii() and key.isprintable()):
                raise UserError("$LATO_API_KEY: it holds characters that a header may not have; is it another file's content?")
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{str(self._config.endpoint).rstrip('/')}/chat/completions", json.dumps(asked).encode(), headers)
        error: Exception | None = None
        for attempt in range(_TRIES):
            if attempt:
                wait(attempt, _PAUSE)
            try:
                with _OPENER.open(request, timeout=_TIMEOUT) as answer:
                    return " ".join(str(json.load(answer)["choices"][0]["message"]["content"]).split())
            except urllib.error.HTTPError as failed:
                error = failed
                if not passes(failed):  # it will not be otherwise the next time
                    break
            except (
                OSError,
                http.client.HTTPException,
                ValueError,
                LookupError,
                TypeError,
            ) as failed:  # no answer, or none that can be read
                error = failed
        hint = " A model that reads text alone needs instructions.picture=false." if self._config.picture else ""
        raise UserError(
            f"instructions.endpoint: {self._config.endpoint} gave no answer in {attempt + 1} tries ({error}). What was answered stands; run the same "
            f"command again.{hint}"
        )


def _request(how: Rewriting, picture: str) -> dict[str, Any]:
    """As an OpenAI-compatible API takes it; the picture goes within."""
    content: Any = how.prompt
    if how.picture:
        url = f"data:image/jpeg;base64,{base64.b64encode(read_bytes(picture)).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": how.prompt}]
    messages = [{"role": "user", "content": content}]
    return {"model": how.model, "seed": how.seed, "temperature": 0.7, "max_tokens": 120, "messages": messages}
