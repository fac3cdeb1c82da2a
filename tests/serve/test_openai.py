"""The unmodified openai client against a listening service."""

from __future__ import annotations

import io

import numpy as np
import openai
import pytest
from PIL import Image

from nextstep.pipeline import NextStepPipeline
from tests.serve.conftest import Running, alone, data_uri, opened, picture_bytes


def test_a_generated_picture_is_the_engines_own(
    service: Running, tiny_pipeline: NextStepPipeline
) -> None:
    answer = service.openai().images.generate(
        model="tiny", prompt="a red apple", n=2, size="32x48", extra_body={"seed": 5, "steps": 3}
    )
    own = alone(tiny_pipeline, "a red apple", height=48, width=32, n=2, seed=5, steps=3)
    for got, wanted in zip(answer.data or [], own, strict=True):
        picture = opened(got.b64_json or "")
        assert picture.size == (32, 48)
        assert picture.tobytes() == wanted.image.tobytes()
        assert '"seed": 5' in picture.info["nextstep"]
    assert answer.size == "32x48" and answer.output_format == "png"
    assert answer.usage is not None and answer.usage.output_tokens == 2 * 6


def test_other_formats(service: Running) -> None:
    for form in ("jpeg", "webp"):
        answer = service.openai().images.generate(
            prompt="a", output_format=form, output_compression=50, extra_body={"seed": 1}
        )
        assert opened(answer.data[0].b64_json).format == form.upper()


def test_an_edit_of_several_pictures(service: Running, tiny_pipeline: NextStepPipeline) -> None:
    files = [("a.png", picture_bytes()), ("../../b.svg", picture_bytes("JPEG", (32, 32)))]
    answer = service.openai().images.edit(
        model="tiny", image=files, prompt="make it blue", extra_body={"seed": 3}
    )
    one = picture_bytes()
    single = service.openai().images.edit(image=one, prompt="make it blue", extra_body={"seed": 3})
    own = alone(tiny_pipeline, "make it blue", opened(data_uri(one).split(",")[1]), seed=3)
    assert opened(single.data[0].b64_json).tobytes() == own[0].image.tobytes()
    assert opened(answer.data[0].b64_json).size == (32, 32)
    assert answer.usage.input_tokens_details.image_tokens == 4 + 4


def test_an_edit_inside_a_mask(service: Running) -> None:
    source = Image.effect_noise((32, 32), 90).convert("RGB")
    mask = Image.new("RGBA", (32, 32), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (18, 3, 27, 30))
    files = []
    for picture in (source, mask):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        files.append(buffer.getvalue())
    answer = service.openai().images.edit(
        image=files[0], mask=files[1], prompt="make it blue", extra_body={"seed": 3}
    )
    made = np.asarray(opened(answer.data[0].b64_json))
    apart = (made != np.asarray(source)).any(axis=2)
    marked = np.asarray(mask)[:, :, 3] == 0
    assert not apart[~marked].any()
    assert apart[marked].mean() > 0.9


def test_partial_pictures_stream(service: Running) -> None:
    stream = service.openai().images.generate(
        prompt="two cats", size="32x64", stream=True, partial_images=3, extra_body={"seed": 2}
    )
    events = list(stream)
    assert [e.type for e in events] == ["image_generation.partial_image"] * 3 + [
        "image_generation.completed"
    ]
    assert [e.partial_image_index for e in events[:3]] == [0, 1, 2]
    assert len({e.b64_json for e in events}) == 4
    assert all(opened(e.b64_json).size == (32, 64) for e in events)
    assert events[-1].usage.output_tokens == 8


def test_an_edit_streams_too(service: Running) -> None:
    stream = service.openai().images.edit(
        image=picture_bytes(), prompt="x", stream=True, partial_images=1, extra_body={"seed": 2}
    )
    assert [e.type for e in stream] == ["image_edit.partial_image", "image_edit.completed"]


def test_models(service: Running) -> None:
    assert [m.id for m in service.openai().models.list()] == ["tiny"]
    assert service.openai().models.retrieve("tiny").id == "tiny"


def test_a_picture_is_read(service: Running, tiny_pipeline: NextStepPipeline) -> None:
    data = picture_bytes()
    content = [
        {"type": "image_url", "image_url": {"url": data_uri(data)}},
        {"type": "text", "text": "two cats"},
    ]
    answer = service.openai().chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": content}], max_tokens=5
    )
    wanted = tiny_pipeline.read(opened(data_uri(data).split(",")[1]), "two cats", 5)
    assert answer.choices[0].message.content == wanted
    assert answer.usage.completion_tokens > 0


def test_temperature_or_top_p_near_nothing_takes_the_likeliest(service: Running) -> None:
    said = [
        service.openai()
        .chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "two cats"}],
            max_tokens=5,
            temperature=temperature,
            top_p=top_p,
            extra_body={"modalities": ["text"]},
        )
        .choices[0]
        .message.content
        for temperature, top_p in ((0, 1), (5e-324, 1), (1e-30, 1), (1, 5e-324))
    ]
    assert len(set(said)) == 1


def test_chat_streams_text(service: Running) -> None:
    asked = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "a red apple"}],
        "max_tokens": 12,
        "extra_body": {"modalities": ["text"], "seed": 1},
        "temperature": 1.0,
    }
    stream = service.openai().chat.completions.create(stream=True, **asked)
    chunks = [c.choices[0] for c in stream]
    assert chunks[0].delta.role == "assistant"
    assert chunks[-1].finish_reason == "stop"
    told = [c.delta.content for c in chunks if c.delta.content]
    assert len(told) > 2
    whole = service.openai().chat.completions.create(**asked).choices[0].message.content
    assert "".join(told) == whole


def test_errors_are_the_clients_own_classes(service: Running) -> None:
    client = service.openai()
    with pytest.raises(openai.NotFoundError) as unknown:
        client.images.generate(model="dall-e-3", prompt="a")
    assert unknown.value.code == "model_not_found"
    for bad in (
        {"size": "33x32"}, {"n": 11}, {"response_format": "jpeg"}, {"background": "transparent"},
        {"extra_body": {"steps": 100000}}, {"extra_body": {"colour": 1}},
        {"extra_body": {"seed": 2**53}}, {"size": "90000x90000"},
        {"prompt": "a " * 4000},
    ):  # fmt: skip
        with pytest.raises(openai.BadRequestError) as error:
            client.images.generate(**{"prompt": "a", **bad})
        assert error.value.body["message"]
        assert error.value.response.headers["x-request-id"]
    for mask, word in (
        (picture_bytes(size=(40, 41)), "40x41 pixels and its picture 40x40"),
        (picture_bytes(), "marks nothing"),
        (b"<svg/>", "only PNG"),
        (b"", "empty"),
    ):
        with pytest.raises(openai.BadRequestError, match=word):
            client.images.edit(image=picture_bytes(), mask=mask, prompt="a")
    with pytest.raises(openai.BadRequestError, match="not fetched"):
        content = [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}}]
        client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": content}]
        )
