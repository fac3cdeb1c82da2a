"""Chats on the engine: those of the pipeline, in any batch, stopped and cancelled."""

from __future__ import annotations

import io
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from nextstep.engine.backends.base import Prompt
from nextstep.engine.events import OUTCOMES, Event, Part, Usage
from nextstep.engine.results import GeneratedPicture
from nextstep.engine.scheduler import Scheduler
from nextstep.engine.sequence import TextSequence
from nextstep.engine.text_sampling import greedy
from nextstep.errors import NextStepError
from nextstep.pipeline import NextStepPipeline
from nextstep.serve.jobs import backend as b
from nextstep.serve.jobs import chat_task
from nextstep.serve.jobs.engine_backend import EngineBackend
from tests.conftest import TINY, random_model
from tests.serve.conftest import engine_of, picture_bytes
from tests.serve.test_jobs import ends_of

RED = Image.open(io.BytesIO(picture_bytes()))


class Script:
    """Chooses given ids, one after the other."""

    def __init__(self, *ids: int) -> None:
        self.ids = list(ids)

    def __call__(self, logits: torch.Tensor) -> int:
        return self.ids.pop(0)


def text_sequence(number: int, limit: int = 6) -> TextSequence:
    return TextSequence(
        Prompt(list(range(7 + number, 12 + 2 * number))), limit, greedy, (1, 3), (0,)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_texts_are_those_written_alone(dtype: torch.dtype) -> None:
    model = random_model(TINY).to(dtype)

    def written(numbers: list[int]) -> dict[int, tuple[int, ...]]:
        scheduler = Scheduler(model)
        tickets = {scheduler.submit(text_sequence(number)): number for number in numbers}
        events = scheduler.run_until_idle()
        return {tickets[e.ticket]: e.ids for e in events if e.kind == "finished"}

    together = written(list(range(11)))
    assert len(together) == 11 and {len(ids) for ids in together.values()} == {6}
    assert len(set(together.values())) > 3
    for number in range(11):
        assert written([number])[number] == together[number]


def test_a_text_that_cannot_run_is_refused() -> None:
    scheduler = Scheduler(random_model(TINY))
    with pytest.raises(NextStepError, match="reads at most 256"):
        scheduler.submit(text_sequence(0, 999))
    with pytest.raises(NextStepError, match="nothing to go on from"):
        scheduler.submit(TextSequence(Prompt([]), 1, greedy, (), ()))


def chat(**more: object) -> b.JobRequest:
    given = {"parts": ("a red apple", 0), "sources": ("any",), "max_tokens": 4, "seed": 5}
    return b.JobRequest(b.CHAT, **{**given, **more})  # type: ignore[arg-type]


def test_chats_equal_the_pipelines_in_any_batch(tiny_pipeline: NextStepPipeline) -> None:
    made = EngineBackend(engine_of(tiny_pipeline))
    asked = {
        "text": chat(),
        "warm": chat(temperature=0.8),
        "draw": chat(draws=1, draw=True),
        "tall": chat(draws=1, draw=True, height=48, width=32),
        "plain": b.JobRequest("generate", "two cats", seed=3),
        "long": chat(parts=("word " * 300,), sources=()),
    }
    _, wait = ends_of(made, asked)
    ends = wait()
    made.close(1)
    for name, request in asked.items():
        single = EngineBackend(engine_of(tiny_pipeline))
        assert ends_of(single, {name: request})[1]()[name] == ends[name]
        single.close(1)
    assert ends["long"].kind == "failed" and ends["long"].bad_input
    for name in ("text", "warm"):
        told = tiny_pipeline.conversation(5)
        told.read("a red apple", RED)
        wanted = told.write(4, 0.8 if name == "warm" else 0.0).strip()
        assert ends[name].parts == (Part(wanted),)
    told = tiny_pipeline.conversation(5)
    told.read("a red apple", RED)
    drawn = told.draw(48, 32)
    (part,) = ends["tall"].parts
    picture = Image.open(io.BytesIO(part.png))
    assert np.abs(np.asarray(picture).astype(int) - np.asarray(drawn.image)).max() <= 1
    rows = part.settings["block_rows"]  # as many as this machine keeps apart
    assert rows > 0 and part.settings == drawn.settings | {"block_rows": rows}
    assert ends["tall"].usage == Usage(ends["text"].usage.text_in, 4, 0, 6)


def test_a_story_writes_and_draws_in_turns(
    tiny_pipeline: NextStepPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    special = tiny_pipeline.text_tokenizer.ids
    words = tiny_pipeline.text_tokenizer.encode("two cats")

    def script(*_: object) -> Script:
        return Script(*words, special.image_area, special.image_area, *words, special.eos)

    for module in (
        "nextstep.engine.chat.conversation.text_choice",
        "nextstep.serve.jobs.chat_task.text_choice",
    ):
        monkeypatch.setattr(module, script)
    made = EngineBackend(engine_of(tiny_pipeline))
    done = ends_of(made, {"s": chat(draws=3, max_tokens=50)})[1]()["s"]
    made.close(1)
    told = tiny_pipeline.conversation(5)
    told.read("a red apple", RED)
    wanted = list(told.go_on(3, 50))
    assert [bool(part.png) for part in done.parts] == [False, True, True, False]
    for part, other in zip(done.parts, wanted, strict=True):
        if isinstance(other, GeneratedPicture):
            own = np.asarray(Image.open(io.BytesIO(part.png))).astype(int)
            assert np.abs(own - np.asarray(other.image)).max() <= 1
            assert part.settings["prompt"] == other.settings["prompt"]
            assert part.settings["index"] == other.settings["index"]
        else:
            assert part.text == other


def test_the_line_before_an_answer_is_not_told(
    tiny_pipeline: NextStepPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tiny_pipeline.text_tokenizer
    written = [*tokenizer.encode("dog left, blue background\nred and blue"), tokenizer.ids.eos]
    monkeypatch.setattr("nextstep.serve.jobs.chat_task.text_choice", lambda *_: Script(*written))
    made = EngineBackend(engine_of(tiny_pipeline))
    told: list[Event] = []
    over = threading.Event()

    def tell(event: Event) -> None:
        told.append(event)
        if event.kind in OUTCOMES:
            over.set()

    request = chat(parts=(0, "Which colours?"), max_tokens=50, settings={"think": True})
    made.submit(b.Job("a", request, lambda name: picture_bytes(), tell))
    assert over.wait(30)
    made.close(1)
    grown = [event.text for event in told if event.kind == "text"]
    assert grown and all("red and blue".startswith(text) for text in grown)
    assert told[-1].kind == "done" and told[-1].parts == (Part("red and blue"),)


def test_stopping_a_story_keeps_its_parts(
    tiny_pipeline: NextStepPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = EngineBackend(engine_of(tiny_pipeline))
    slow = chat(draws=2, draw=True, height=96, width=32, settings={"steps": 100})
    handles, wait = ends_of(made, {"s": slow, "g": slow})
    seen = []
    tell = chat_task.RowReporter.tell

    def watched(self: chat_task.RowReporter, *given: object) -> None:
        tell(self, *given)  # type: ignore[arg-type]
        if self.told == 2 and self.task.request is slow and not seen:
            seen.append(1)
            handles["s"].stop()
            handles["g"].cancel()

    monkeypatch.setattr(chat_task.RowReporter, "tell", watched)
    ends = wait()
    made.close(1)
    (part,) = ends["s"].parts
    assert part.settings["rows_done"] == 2
    assert ends["g"].kind == "cancelled"
