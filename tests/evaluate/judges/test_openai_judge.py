"""The judge behind an endpoint, against one that fails in every way."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nextstep.errors import NextStepError
from nextstep.evaluate.judges import load_judge
from nextstep.evaluate.judges.cache import AnswerCache, picture_hash
from nextstep.evaluate.judges.openai import TRIES, OpenAIJudge
from nextstep.evaluate.judges.protocol import (
    RefusedError,
    UnavailableError,
    UnreadableError,
    ask_until_read,
)
from tests.evaluate.benchmarks.official import picture
from tests.evaluate.judges.server import FAULTS, Endpoint, endpoint

PICTURE = picture(0)


def judge_of(server: Endpoint, cache: Path | None = None, timeout: float = 0.4) -> OpenAIJudge:
    return OpenAIJudge("judge-1", server.url, "secret", cache, 4, timeout, pause=0.01)


def test_what_is_sent() -> None:
    with endpoint() as server:
        assert judge_of(server).ask("Is it?", [PICTURE], system="Be strict.") == "yes"
    (body,) = server.bodies
    assert body["model"] == "judge-1"
    assert body["temperature"] == 0.0
    assert body["messages"][0] == {"role": "system", "content": "Be strict."}
    shown, text = body["messages"][1]["content"]
    assert shown["image_url"]["url"].startswith("data:image/png;base64,")
    assert text == {"type": "text", "text": "Is it?"}
    assert server.keys == {"Bearer secret"}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_asked_again(fault: str) -> None:
    with endpoint(faults=lambda n, _: fault if n < 2 else "", slow=0.6) as server:
        assert judge_of(server).ask("q") == "yes"
    assert server.requests["q"] == 3


def test_many_questions_under_all_faults_are_answered_once_each() -> None:
    kinds = [*FAULTS, ""]

    def faults(number: int, question: str) -> str:
        return kinds[(int(question) + number) % len(kinds)] if number < 3 else ""

    with endpoint(answer=lambda q: f"a{q}", faults=faults, slow=0.5) as server:
        judge = judge_of(server)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda n: judge.ask(str(n)), range(24)))
    assert answers == [f"a{n}" for n in range(24)]
    assert judge.cache.usage()["answers"] == 24


def test_kept_answers_are_not_paid_for_again(tmp_path: Path) -> None:
    with endpoint() as server:
        for _ in range(2):
            judge = judge_of(server, tmp_path)
            assert judge.ask("q", [PICTURE]) == judge.ask("q", [PICTURE]) == "yes"
        assert sum(server.requests.values()) == 1
        judge.ask("q", [picture(1)])
        judge.ask("other", [PICTURE])
        judge.ask("q", [PICTURE], attempt=1)
        judge.ask("q", [PICTURE], system="s")
        OpenAIJudge("judge-2", server.url, cache=tmp_path).ask("q", [PICTURE])
        assert sum(server.requests.values()) == 6
    told = {"answers": 6, "prompt_tokens": 60, "completion_tokens": 12}
    assert AnswerCache(tmp_path).usage() == told
    for path in tmp_path.rglob("*.json"):
        path.write_text("{half")
    with endpoint() as server:
        # Damaged answers are asked for again. The address is part of what was asked.
        assert judge_of(server, tmp_path).ask("q", [PICTURE]) == "yes"


def test_two_threads_with_one_question_ask_once() -> None:
    with endpoint(delay=0.1) as server:
        judge = judge_of(server, timeout=5)
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda _: judge.ask("q"), range(8))) == ["yes"] * 8
    assert server.requests["q"] == 1


def test_an_endpoint_that_never_answers_is_unavailable() -> None:
    with endpoint(faults=lambda *_: "500") as server:
        judge = judge_of(server)
        judge.pause = 0.001
        with pytest.raises(UnavailableError, match=rf"no answer in {TRIES} tries: 500 500 fault"):
            judge.ask("q")
        assert server.requests["q"] == TRIES
        server.faults = lambda *_: ""
        assert judge.ask("q") == "yes"  # nothing of the failure was kept
    with pytest.raises(UnavailableError, match="no answer"):
        OpenAIJudge("m", server.url, timeout=0.2, pause=0.001).ask("q")


def test_a_refused_picture_is_not_asked_about_again(tmp_path: Path) -> None:
    with endpoint(faults=lambda *_: "policy") as server:
        for _ in range(2):
            with pytest.raises(RefusedError, match="content_policy_violation not this picture"):
                judge_of(server, tmp_path).ask("q", [PICTURE])
        assert sum(server.requests.values()) == 1


@pytest.mark.parametrize("status", ["400", "401", "404"])
def test_a_request_that_no_service_takes_stops_at_once(status: str) -> None:
    with endpoint(faults=lambda *_: status) as server:
        with pytest.raises(NextStepError, match=f"does not take the question: {status}"):
            judge_of(server).ask("q")
        assert server.requests["q"] == 1


def test_probabilities_are_summed_over_forms_of_the_answer() -> None:
    with endpoint() as server:
        judge = judge_of(server)
        yes = judge.yes_probability("q", [PICTURE])
        assert yes == pytest.approx(math.exp(-0.5) + math.exp(-2.0))
        assert judge.yes_probability("q", [PICTURE], ("No",)) == pytest.approx(math.exp(-1.5))
        assert judge.yes_probability("q", [PICTURE], ("Maybe",)) == 0.0
        assert sum(server.requests.values()) == 1  # all three from one answer
    assert server.bodies[0]["max_tokens"] == 1
    assert server.bodies[0]["top_logprobs"] == 20


def test_services_without_probabilities_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = {"choices": [{"message": {"content": "Yes"}}]}
    monkeypatch.setattr(
        "tests.evaluate.judges.server.Handler.answer", lambda *_: json.dumps(plain).encode()
    )
    with endpoint() as server, pytest.raises(NextStepError, match="no token probabilities"):
        judge_of(server).yes_probability("q")


def test_an_unreadable_answer_is_asked_for_three_times() -> None:
    def read(answer: str) -> int:
        try:
            return int(answer)
        except ValueError:
            raise UnreadableError("no number") from None

    answers = iter(["none", "still none", "7"])
    with endpoint(answer=lambda _: next(answers)) as server:
        assert ask_until_read(judge_of(server), "q", [], read) == (7, "7")
        assert [body["temperature"] for body in server.bodies] == [0.0, 0.5, 0.5]
    with endpoint(answer=lambda _: "none") as server:
        with pytest.raises(UnreadableError, match="cannot be read: 'none'"):
            ask_until_read(judge_of(server), "q", [], read)
        assert server.requests["q"] == 3


def test_specifications(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "one")
    monkeypatch.setenv("NEXTSTEP_JUDGE_KEY", "two")
    with endpoint() as server:
        judge = load_judge(f"openai:org/model-1@{server.url}/", tmp_path, 3)
        assert (judge.name, judge.concurrency) == ("org/model-1", 3)
        assert judge.ask("q") == "yes"
    assert server.keys == {"Bearer two"}
    for spec in ("openai:", "gpt-4o", "transformers:", "openai:m@localhost"):
        with pytest.raises(NextStepError, match=r"names no judge|no address"):
            load_judge(spec)
    with pytest.raises(NextStepError, match="cannot detect objects"):
        judge.detect(PICTURE)
    with pytest.raises(NextStepError, match="cannot embed"):
        judge.embed([PICTURE])


def test_pictures_are_distinguished_by_their_pixels() -> None:
    assert picture_hash(picture(1)) == picture_hash(picture(1))
    assert picture_hash(picture(1)) != picture_hash(picture(2))
