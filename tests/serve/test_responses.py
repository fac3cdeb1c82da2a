"""OpenAI's Responses endpoint through its unmodified client."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import numpy as np
import openai
import pytest
from PIL import Image

from nextstep.pipeline import NextStepPipeline
from nextstep.serve.api.keys import add_key
from nextstep.serve.api.server import build_app
from nextstep.text.vocabulary import Vocabulary
from tests.serve.conftest import Running, alone, data_uri, opened, picture_bytes, running

TOOL = {"type": "image_generation"}
OWN = Vocabulary({"apple": ("pomme",), "red heart": ()}, {"flat": ()}, {}, words=frozenset(["red"]),
                 examples=("apple, flat style",))  # fmt: skip


@pytest.fixture(scope="module")
def worded(tiny_pipeline: NextStepPipeline) -> Iterator[Running]:
    """A service whose model lists what it draws."""
    tiny_pipeline.vocabulary = OWN
    try:
        app = build_app(tiny_pipeline, "tiny", None, preview_share=100)
    finally:
        tiny_pipeline.vocabulary = None
    with running(app) as made:
        yield made


def drawn(
    service: Running, text: object = "a red apple", **more: object
) -> openai.types.responses.Response:
    more.setdefault("extra_body", {"seed": 5, "steps": 3})
    more.setdefault("tools", [TOOL])
    return service.openai().responses.create(model="tiny", input=text, **more)


def call_of(answer: openai.types.responses.Response) -> object:
    (call,) = [one for one in answer.output if one.type == "image_generation_call"]
    return call


def message(*content: dict, role: str = "user") -> dict:
    return {"role": role, "content": list(content)}


def words(text: str) -> dict:
    return {"type": "input_text", "text": text}


def image(data: bytes) -> dict:
    return {"type": "input_image", "image_url": data_uri(data)}


def test_tool_draws_the_engines_own_picture(
    service: Running, tiny_pipeline: NextStepPipeline
) -> None:
    answer = drawn(service, tools=[{**TOOL, "size": "32x48", "quality": "high"}])
    call = call_of(answer)
    (own,) = alone(tiny_pipeline, "a red apple", height=48, width=32, seed=5, steps=3)
    picture = opened(call.result)
    assert picture.tobytes() == own.image.tobytes()
    assert '"seed": 5' in picture.info["nextstep"]
    assert (call.status, call.size, call.action) == ("completed", "32x48", "generate")
    assert answer.status == "completed" and answer.output_text == ""
    assert answer.usage.output_tokens == 6 and answer.model == "tiny"


def test_output_formats_of_the_tool(service: Running) -> None:
    for form in ("jpeg", "webp"):
        answer = drawn(service, tools=[{**TOOL, "output_format": form, "output_compression": 50}])
        assert opened(call_of(answer).result).format == form.upper()


def test_partial_pictures_stream_in_order(service: Running) -> None:
    tool = {**TOOL, "size": "32x64", "partial_images": 3}
    stream = drawn(service, "two cats", stream=True, tools=[tool])
    events = list(stream)
    assert [one.sequence_number for one in events] == list(range(len(events)))
    kinds = [one.type.removeprefix("response.") for one in events]
    partial = ["image_generation_call.partial_image"] * 3
    assert kinds == [
        "created", "in_progress", "output_item.added", "image_generation_call.in_progress",
        "image_generation_call.generating", *partial, "image_generation_call.completed",
        "output_item.done", "completed",
    ]  # fmt: skip
    shown = [one for one in events if one.type.endswith("partial_image")]
    assert [one.partial_image_index for one in shown] == [0, 1, 2]
    assert all(opened(one.partial_image_b64).size == (32, 64) for one in shown)
    assert len({one.partial_image_b64 for one in shown}) == 3
    whole = call_of(drawn(service, "two cats", tools=[{**TOOL, "size": "32x64"}])).result
    assert call_of(events[-1].response).result == whole


def test_clients_own_stream_helper_follows(service: Running) -> None:
    asked = {"model": "tiny", "input": "a red apple", "extra_body": {"seed": 1}}
    for tools in ([TOOL], []):
        with service.openai().responses.stream(tools=tools, **asked) as stream:
            for _ in stream:
                pass
            told = stream.get_final_response()
        assert told.status == "completed" and len(told.output) == 1
        whole = service.openai().responses.create(tools=tools, **asked)
        assert told.output_text == whole.output_text


def test_pictures_of_the_input_are_edited(
    service: Running, tiny_pipeline: NextStepPipeline
) -> None:
    data = picture_bytes()
    answer = drawn(service, [message(words("make it blue"), image(data))])
    (own,) = alone(
        tiny_pipeline, "make it blue", opened(data_uri(data).split(",")[1]), seed=5, steps=3
    )
    assert opened(call_of(answer).result).tobytes() == own.image.tobytes()
    assert call_of(answer).action == "edit"
    tool = {**TOOL, "action": "generate"}
    fresh = drawn(service, [message(words("make it blue"), image(data))], tools=[tool])
    assert call_of(fresh).action == "generate"
    with pytest.raises(openai.BadRequestError, match="no picture to edit"):
        drawn(service, tools=[{**TOOL, "action": "edit"}])


def test_edit_stays_inside_the_mask(service: Running) -> None:
    source = Image.effect_noise((32, 32), 90).convert("RGB")
    mask = Image.new("RGBA", (32, 32), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 16, 16))
    files = [png(source), png(mask)]
    tool = {**TOOL, "input_image_mask": {"image_url": data_uri(files[1])}}
    answer = drawn(service, [message(words("make it blue"), image(files[0]))], tools=[tool])
    made, before = np.asarray(opened(call_of(answer).result)), np.asarray(source)
    assert (made[16:] == before[16:]).all() and (made[:, 16:] == before[:, 16:]).all()
    assert not (made[:16, :16] == before[:16, :16]).all()


def png(picture: Image.Image) -> bytes:
    import io

    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def test_next_turn_edits_the_picture_before(service: Running) -> None:
    first = drawn(service)
    result = call_of(first).result
    by_id = drawn(service, "make it blue", previous_response_id=first.id)
    assert call_of(by_id).action == "edit" and by_id.previous_response_id == first.id
    direct = drawn(service, [message(words("make it blue"), image_of(result))])
    again = drawn(service, [*[one.to_dict() for one in first.output],
                            message(words("make it blue"))])  # fmt: skip
    short = drawn(service, [{"type": "image_generation_call", "id": call_of(first).id},
                            message(words("make it blue"))])  # fmt: skip
    for other in (direct, again, short):
        assert call_of(other).result == call_of(by_id).result


def image_of(result: str) -> dict:
    return {"type": "input_image", "image_url": f"data:image/png;base64,{result}"}


def test_conversation_goes_on_as_one_sequence(service: Running) -> None:
    client = service.openai()
    first = client.responses.create(model="tiny", input="a red apple", max_output_tokens=5)
    second = client.responses.create(
        model="tiny", input="two cats", max_output_tokens=5, previous_response_id=first.id
    )
    parts = [{"type": "text", "text": text} for text in ("a red apple", first.output_text,
                                                        "two cats") if text]  # fmt: skip
    chat = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": parts}], max_tokens=5,
        extra_body={"modalities": ["text"]},
    )  # fmt: skip
    assert second.output_text == chat.choices[0].message.content


def test_question_about_a_picture_is_answered_in_words(
    service: Running, tiny_pipeline: NextStepPipeline
) -> None:
    data = picture_bytes()
    given = [message(image(data), words("how many cats?"))]
    answer = drawn(service, given, max_output_tokens=5)
    picture = opened(data_uri(data).split(",")[1])
    assert answer.output_text == tiny_pipeline.read(picture, "how many cats?", 5)
    assert [one.type for one in answer.output] == ["message"]
    forced = drawn(service, given, tool_choice=TOOL)
    assert call_of(forced).action == "edit"
    events = list(drawn(service, given, max_output_tokens=5, stream=True))
    deltas = [one.delta for one in events if one.type == "response.output_text.delta"]
    assert "".join(deltas) == answer.output_text
    assert events[-1].response.output_text == answer.output_text


@pytest.mark.parametrize("said", ["Hello, who are you?", "Hi", "你好", "What can you do?"])
def test_small_model_says_what_it_can_do(worded: Running, said: str) -> None:
    client = worded.openai()
    answer = client.responses.create(model="tiny", input=said, tools=[TOOL])
    assert "tiny draws, edits and reads pictures" in answer.output_text
    assert "apple, flat style" in answer.output_text
    assert answer.warnings == [
        "the service answered: the model was taught nothing of what was said"
    ]
    chat = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": said}], extra_body={"seed": 1}
    )
    assert chat.choices[0].message.content == answer.output_text
    stream = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": said}], stream=True
    )
    assert "".join(c.choices[0].delta.content or "" for c in stream) == answer.output_text
    events = list(client.responses.create(model="tiny", input=said, stream=True))
    assert events[-1].response.output_text == answer.output_text


def test_small_model_draws_what_it_knows(worded: Running) -> None:
    for said in ("Can you draw a pomme?", "red hearts", "an APPLE, please"):
        assert call_of(worded.openai().responses.create(model="tiny", input=said, tools=[TOOL]))


def test_earlier_texts_that_a_prompt_leaves_out_are_named(service: Running) -> None:
    answer = drawn(service, instructions="You are helpful.")
    assert "instructions and earlier texts are unread" in answer.warnings[0]
    assert drawn(service).warnings == []


def test_answers_are_fetched_and_removed(service: Running) -> None:
    client = service.openai()
    made = drawn(service)
    again = client.responses.retrieve(made.id)
    assert call_of(again).result == call_of(made).result and again.status == "completed"
    assert client.responses.cancel(made.id).status == "completed"
    client.responses.delete(made.id)
    for ask in (client.responses.retrieve, client.responses.delete):
        with pytest.raises(openai.NotFoundError, match="no answer"):
            ask(made.id)
    with pytest.raises(openai.NotFoundError, match="no answer"):
        drawn(service, previous_response_id=made.id)


def test_answer_that_is_not_stored_is_forgotten(service: Running) -> None:
    for stream in (False, True):
        made = drawn(service, store=False, stream=stream)
        key = [*made][-1].response.id if stream else made.id
        with pytest.raises(openai.NotFoundError):
            service.openai().responses.retrieve(key)


def test_answers_belong_to_their_key(app_of: Callable, tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    ann, bob = add_key(keys, "ann"), add_key(keys, "bob")
    with running(app_of(keys=keys)) as made:
        answer = made.openai(ann).responses.create(model="tiny", input="a", max_output_tokens=2)
        assert made.openai(ann).responses.retrieve(answer.id).id == answer.id
        with pytest.raises(openai.NotFoundError):
            made.openai(bob).responses.retrieve(answer.id)
        with pytest.raises(openai.NotFoundError):
            made.openai(bob).responses.create(
                model="tiny", input="a", previous_response_id=answer.id
            )


@pytest.mark.parametrize(("fields", "word"), [
    ({"tools": [{"type": "web_search"}]}, "image_generation"),
    ({"tools": [TOOL, TOOL]}, "tools"),
    ({"tools": [{**TOOL, "colour": 1}]}, "colour"),
    ({"tools": [{**TOOL, "output_format": "svg"}]}, "output_format"),
    ({"tools": [{**TOOL, "background": "transparent"}]}, "background"),
    ({"tools": [{**TOOL, "size": "33x32"}]}, "multiples of 16"),
    ({"tools": [], "tool_choice": "required"}, "tool_choice"),
    ({"background": True}, "background"),
    ({"reasoning": {"effort": "high"}}, "reasoning"),
    ({"text": {"format": {"type": "json_object"}}}, "text"),
    ({"previous_response_id": "resp_1"}, "32 digits"),
    ({"input": []}, "input"),
    ({"input": [{"type": "function_call_output"}]}, "input"),
    ({"input": [message({"type": "input_file", "file_id": "a"})]}, "input"),
    ({"input": [message(image(b"<svg/>"))]}, "only PNG"),
    ({"input": [message({"type": "input_image", "image_url": "http://a/b.png"})]}, "not fetched"),
    ({"input": [{"type": "image_generation_call", "result": "??"}]}, "base64"),
    ({"input": "", "tools": [TOOL]}, "neither text nor a picture"),
])  # fmt: skip
def test_what_cannot_be_answered_is_refused_in_words(
    service: Running, fields: dict, word: str
) -> None:
    body = {"input": "a red apple", **fields}
    answer = httpx2.post(f"{service.url}/v1/responses", json=body, timeout=60)
    assert answer.status_code == 400
    told = answer.json()["error"]["message"]
    assert word in told and "^" not in told
    assert "Traceback" not in json.dumps(answer.json())


@pytest.mark.parametrize("field", [
    {"metadata": {"a": "b"}}, {"parallel_tool_calls": True}, {"truncation": "auto"},
    {"reasoning": None}, {"text": {"format": {"type": "text"}}}, {"include": []},
    {"user": "ann"}, {"background": False}, {"service_tier": "auto"}, {"store": True},
])  # fmt: skip
def test_fields_that_change_nothing_are_taken(service: Running, field: dict) -> None:
    body = {"input": "a red apple", "max_output_tokens": 2, **field}
    assert httpx2.post(f"{service.url}/v1/responses", json=body).status_code == 200


def test_jobs_say_where_they_were_asked_for(service: Running) -> None:
    client = service.openai()
    drawn(service)
    client.images.generate(model="tiny", prompt="a")
    client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "a"}], max_tokens=1,
        extra_body={"modalities": ["text"]},
    )  # fmt: skip
    httpx2.post(f"{service.url}/jobs", json={"prompt": "a"})
    httpx2.post(f"{service.url}/jobs", json={"prompt": "a"}, headers={"X-Client": "studio"})
    jobs = httpx2.get(f"{service.url}/jobs?limit=5").json()["data"]
    endpoints = [job["endpoint"] for job in jobs]
    assert endpoints == ["studio", "jobs", "chat", "images", "responses"]
