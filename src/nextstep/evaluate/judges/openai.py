"""A judge behind an OpenAI-compatible endpoint: any base URL, answers kept, failures asked again.

What a service answers decides what happens: an overload or a broken answer is asked again with
growing pauses; a refusal of this one picture is the item's failure; a request that the service
cannot take at all stops the run, since every other one would fail alike.
"""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from nextstep.errors import NextStepError
from nextstep.evaluate.judges.cache import AnswerCache, Entry, picture_hash
from nextstep.evaluate.judges.protocol import (
    YES,
    Judge,
    RefusedError,
    UnavailableError,
)
from nextstep.image.encode import encode

TRIES = 8
"""Requests for one answer until the service counts as gone."""
LONGEST_PAUSE = 60.0
"""Seconds between two of them at most."""
AGAIN_TEMPERATURE = 0.5
"""For questions whose first answer could not be read: at 0 the answer would be the same."""
TOP_LOGPROBS = 20
"""The most that the interface gives; an answer below the 20 likeliest counts as impossible."""
OVERLOADED = (408, 409, 425, 429)
REFUSALS = ("content_filter", "content_policy", "safety", "moderation", "invalid_image", "image_")


class OpenAIJudge(Judge):
    """Asks a chat endpoint.

    Args:
        model: as the service calls it.
        base_url: such as https://api.openai.com/v1.
        key: API key; None for services without one.
        cache: folder of answers.
        concurrency: requests at the same time.
        timeout: seconds without a word after which a request is given up.
        pause: seconds before the second try; doubled with every further one.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        key: str | None = None,
        cache: Path | None = None,
        concurrency: int = 8,
        timeout: float = 120.0,
        pause: float = 1.0,
    ) -> None:
        import httpx2

        if not base_url.startswith(("http://", "https://")):
            raise NextStepError(f"'{base_url}' is no address of a service: it begins with https://")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.name, self.base_url, self.concurrency = model, base_url.rstrip("/"), concurrency
        self.cache, self.pause = AnswerCache(cache), pause
        # Certificates take a second to load and have no part in a plain connection.
        secure = base_url.startswith("https://")
        self._http = httpx2.Client(headers=headers, timeout=timeout, verify=secure)

    def ask(
        self,
        question: str,
        pictures: Sequence[Image.Image] = (),
        *,
        system: str = "",
        max_tokens: int = 512,
        attempt: int = 0,
    ) -> str:
        """See `Judge.ask`."""
        options: dict[str, Any] = {
            "max_tokens": max_tokens,
            "temperature": AGAIN_TEMPERATURE if attempt else 0.0,
        }
        entry = self._answer(question, pictures, system, options, attempt)
        return str(entry["text"])

    def yes_probability(
        self, question: str, pictures: Sequence[Image.Image] = (), answers: Sequence[str] = YES
    ) -> float:
        """See `Judge.yes_probability`; from the 20 likeliest first tokens."""
        options = {
            "max_tokens": 1, "temperature": 0.0, "logprobs": True, "top_logprobs": TOP_LOGPROBS,
        }  # fmt: skip
        entry = self._answer(question, pictures, "", options, 0)
        likeliest = entry.get("likeliest")
        if not likeliest:
            raise NextStepError(
                f"the service of {self.name} gives no token probabilities, which this score needs"
            )
        wanted = {answer.strip() for answer in answers}
        found = (math.exp(logprob) for token, logprob in likeliest if token.strip() in wanted)
        return min(1.0, sum(found))

    def _answer(
        self,
        question: str,
        pictures: Sequence[Image.Image],
        system: str,
        options: dict[str, Any],
        attempt: int,
    ) -> Entry:
        asked = {
            "service": self.base_url, "model": self.name, "system": system, "question": question,
            "pictures": [picture_hash(one) for one in pictures], "attempt": attempt, **options,
        }  # fmt: skip
        entry = self.cache.get(asked, lambda: self._post(question, pictures, system, options))
        if "refused" in entry:
            raise RefusedError(f"the judge refuses to answer: {entry['refused']}")
        return entry

    def _post(
        self,
        question: str,
        pictures: Sequence[Image.Image],
        system: str,
        options: dict[str, Any],
    ) -> Entry:
        shown = [{"type": "image_url", "image_url": {"url": data_url(one)}} for one in pictures]
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": [*shown, {"type": "text", "text": question}]}
        ]
        if system:
            messages.insert(0, {"role": "system", "content": system})
        body = {"model": self.name, "messages": messages, **options}
        return self._until_answered(body)

    def _until_answered(self, body: dict[str, Any]) -> Entry:
        import httpx2

        reason, pause = "", self.pause
        for attempt in range(TRIES):
            if attempt:
                time.sleep(min(pause, LONGEST_PAUSE))
                pause *= 2
            try:
                response = self._http.post(f"{self.base_url}/chat/completions", json=body)
            except httpx2.TransportError as error:
                reason = f"{type(error).__name__} {error}".strip()
                continue
            if response.status_code == 200:
                entry = _read_answer(response)
                if entry is not None:
                    return entry
                reason = "its answer was damaged"
                continue
            reason = _reason(response)
            if response.status_code in OVERLOADED or response.status_code >= 500:
                pause = max(pause, _wanted_pause(response))
                continue
            if any(word in reason.lower() for word in REFUSALS):
                return {"refused": reason}
            raise NextStepError(f"{self.base_url} does not take the question: {reason}")
        raise UnavailableError(f"{self.base_url} gave no answer in {TRIES} tries: {reason}")


def data_url(picture: Image.Image) -> str:
    """A picture inside a URL, as PNG."""
    return "data:image/png;base64," + base64.b64encode(encode(picture)).decode()


def _read_answer(response: Any) -> Entry | None:
    """Text, likeliest first tokens and usage; None when the answer is not whole."""
    try:
        told = response.json()
        choice = told["choices"][0]
        message = choice["message"]
        refusal = message.get("refusal")
        if choice.get("finish_reason") == "content_filter" or refusal:
            return {"refused": str(refusal or "content filter"), "usage": told.get("usage")}
        if not isinstance(message["content"], str):
            return None
        entry: Entry = {"text": message["content"], "usage": told.get("usage")}
        first = ((choice.get("logprobs") or {}).get("content") or [None])[0]
        if first:
            entry["likeliest"] = [
                (one["token"], float(one["logprob"])) for one in first["top_logprobs"]
            ]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None
    return entry


def _reason(response: Any) -> str:
    """A service's error in words: its code and message where it tells them."""
    try:
        error = response.json()["error"]
        words = [str(error.get("code") or ""), str(error.get("message") or "")]
        told = " ".join(word for word in words if word)
    except (ValueError, KeyError, TypeError, AttributeError):
        told = response.text[:200]
    return f"{response.status_code} {' '.join(told.split())}".strip()


def _wanted_pause(response: Any) -> float:
    """Seconds that the service asks to wait; 0 when it does not say."""
    try:
        return max(0.0, float(response.headers.get("retry-after", 0)))
    except ValueError:
        return 0.0
