"""Settings that a task would ignore are refused; those that count are recorded."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from nextstep.engine.engine import Engine
from nextstep.engine.pretrained import Parts
from nextstep.engine.settings import IGNORED, check_used
from nextstep.errors import NextStepError
from nextstep.kernels import build
from nextstep.model.quantization import pack_model
from nextstep.pipeline import NextStepPipeline
from nextstep.serve.jobs import backend as b
from nextstep.serve.jobs.engine_backend import EngineBackend
from tests.conftest import PACKABLE, random_model

RED = Image.new("RGB", (32, 32), "red")


def test_the_table_names_tasks_and_neutral_values() -> None:
    for task, ignored in IGNORED.items():
        check_used(task, dict(ignored))
        check_used(task, dict.fromkeys(ignored))
    check_used("edit", {"image_guidance": 3.0, "reasoning": True})


@pytest.mark.parametrize("way", ["pipeline", "engine"])
def test_image_guidance_without_images_is_refused(
    way: str, tiny_pipeline: NextStepPipeline
) -> None:
    ask: Any = tiny_pipeline.generate if way == "pipeline" else tiny_pipeline.engine().request
    with pytest.raises(NextStepError, match="'image_guidance' has no effect on a picture without"):
        ask("two cats", image_guidance=3.0)
    ask("two cats", image_guidance=1.0)


def test_reasoning_in_a_story_is_refused(tiny_pipeline: NextStepPipeline) -> None:
    with pytest.raises(NextStepError, match="'reasoning' has no effect on a story"):
        tiny_pipeline.story("once", reasoning=True)


@pytest.mark.parametrize(
    ("draws", "settings", "match"),
    [
        (1, {"reasoning": True}, "'reasoning' has no effect"),
        (0, {"steps": 9}, "'steps' has no effect"),
    ],
)
def test_a_service_refuses_what_a_chat_would_ignore(
    draws: int, settings: dict[str, Any], match: str, tiny_parts: Parts
) -> None:
    service = EngineBackend(Engine.of_parts(tiny_parts))
    asked = b.JobRequest(b.CHAT, parts=("once",), draws=draws, settings=settings)
    try:
        with pytest.raises(NextStepError, match=match):
            service.check(asked)
    finally:
        service.close(1)


@pytest.mark.skipif(not build.is_available(), reason=build.why_not())
def test_pictures_of_stories_record_rounded_weights(tiny_parts: Parts) -> None:
    model = random_model(PACKABLE)
    pack_model(model, "int8")
    pipeline = NextStepPipeline(
        model, tiny_parts.image_tokenizer, tiny_parts.text_tokenizer, tiny_parts.defaults
    )
    told = pipeline.conversation()
    told.read("a red apple")
    assert told.draw().settings["quantize"] == "int8"
    assert pipeline.generate("a red apple")[0].settings["quantize"] == "int8"
