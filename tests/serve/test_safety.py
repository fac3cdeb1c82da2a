"""What the service refuses."""

from __future__ import annotations

import io
import json
import logging
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import httpx2
import openai
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nextstep.errors import NextStepError
from nextstep.serve.api.keys import Keys, add_key
from nextstep.serve.api.server import JsonLogFormatter
from nextstep.serve.api.uploads import bytes_of_uri, check_pictures, safe_mask, safe_picture
from nextstep.serve.jobs.limits import ServiceLimits, check_binding
from nextstep.serve.problems import ApiError
from tests.serve.conftest import Running, data_uri, picture_bytes, running, until

LIMITS = ServiceLimits(picture_bytes=100_000, picture_pixels=10_000)


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises more pixels than it has bytes for."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(
            ">I", zlib.crc32(name + data))  # fmt: skip

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
            + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))  # fmt: skip


def animation() -> bytes:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


REFUSED = {
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "tiff": picture_bytes("TIFF"),
    "bomb": bomb(60_000, 60_000),
    "pixels": picture_bytes(size=(101, 100)),
    "bytes": bytes(100_001),
    "cut": picture_bytes()[:-20],
    "cut jpeg": picture_bytes("JPEG", size=(90, 90))[:-200],
    "cut webp": picture_bytes("WEBP", size=(90, 90))[:-20],
    "animation": animation(),
    "empty": b"",
    "few pixels in": bomb(90, 90),
}


@pytest.mark.parametrize("name", REFUSED)
def test_only_whole_plain_pictures_are_taken(name: str) -> None:
    with pytest.raises(ApiError) as refused:
        safe_picture(REFUSED[name], LIMITS, "image")
    assert refused.value.status == (413 if name in ("bomb", "pixels", "bytes") else 400)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF"])
def test_what_lies_behind_a_picture_is_no_damage_and_not_kept(form: str) -> None:
    """Phones put films and depth maps there, editors what was cut off."""
    data = picture_bytes(form)
    taken = safe_picture(data + b"<script>PK\x03\x04", LIMITS, "image")
    assert taken == safe_picture(data, LIMITS, "image")


def test_the_further_pictures_of_a_photo_are_no_animation() -> None:
    buffer = io.BytesIO()
    photo, depth = Image.new("RGB", (80, 60), "red"), Image.new("RGB", (8, 6))
    photo.save(buffer, "MPO", save_all=True, append_images=[depth])
    with Image.open(io.BytesIO(safe_picture(buffer.getvalue(), LIMITS, "image"))) as taken:
        assert taken.size == (80, 60) and taken.getpixel((5, 5))[0] > 250


def test_photos_of_phones_are_taken_by_default() -> None:
    photo = picture_bytes("JPEG", (8160, 6120))
    check_pictures([photo] * 8, ServiceLimits(), "image")
    taken = safe_picture(photo, ServiceLimits(), "image")
    mask = Image.new("L", (8160, 6120))
    mask.paste(255, (0, 0, 4080, 6120))
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    with Image.open(
        io.BytesIO(safe_mask(buffer.getvalue(), taken, ServiceLimits(), "mask"))
    ) as kept:
        assert kept.size == (2040, 1530)
        assert kept.getpixel((1000, 9)) == 255 and kept.getpixel((1040, 9)) == 0
    with pytest.raises(ApiError, match="40x40 pixels and its picture 8160x6120"):
        safe_mask(picture_bytes(), taken, ServiceLimits(), "mask")


def test_pixels_to_decode_are_counted_over_a_request() -> None:
    wide = picture_bytes("PNG", (4000, 4000))
    check_pictures([wide] * 4, ServiceLimits(), "image")
    with pytest.raises(ApiError, match=r"at most 64,000,000 pixels to decode") as refused:
        check_pictures([wide] * 5, ServiceLimits(), "image")
    assert refused.value.status == 413


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_nothing_but_pixels_is_kept(form: str) -> None:
    exif = Image.Exif()
    exif[0x010E] = "secret words"
    taken = safe_picture(picture_bytes(form, exif=exif), LIMITS, "image")
    assert b"secret" not in taken
    with Image.open(io.BytesIO(taken)) as picture:
        assert picture.format == "PNG" and not picture.info


@given(st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"]))
def test_any_bytes_are_refused_in_words(data: bytes, start: bytes) -> None:
    with pytest.raises(ApiError):
        safe_picture(start + data, LIMITS, "image")


@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1/x.png", "file:///etc/passwd", "data:text/html;base64,AAAA",
        "data:image/svg+xml;base64,AAAA", "data:image/png;base64,A", "data:image/png,abc", "",
    ],
)  # fmt: skip
def test_only_data_uris_of_pictures(uri: str) -> None:
    with pytest.raises(ApiError):
        safe_picture(bytes_of_uri(uri, LIMITS, "messages"), LIMITS, "messages")
    assert bytes_of_uri(data_uri(picture_bytes()), LIMITS, "messages") == picture_bytes()


def test_it_opens_wide_only_with_keys(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        with pytest.raises(NextStepError, match="--keys"):
            check_binding(host, None)
        check_binding(host, tmp_path / "keys")
    for host in ("127.0.0.1", "localhost", "::1"):
        check_binding(host, None)


def test_keys_are_kept_as_hashes_and_part_their_owners(app_of: Callable, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    ann, ben = add_key(file, "ann"), add_key(file, "ben")
    assert ann not in file.read_text() and file.stat().st_mode & 0o77 == 0
    assert Keys.of_file(file).owner(ann) == "ann" and Keys.of_file(file).owner("x") is None
    with pytest.raises(NextStepError, match="already"):
        add_key(file, "ann")
    with running(app_of(keys=file)) as made:
        assert made.openai(ann).images.generate(prompt="a").data
        with pytest.raises(openai.AuthenticationError):
            made.openai("ns-wrong").images.generate(prompt="a")
        headers = {"Authorization": f"Bearer {ann}"}
        job = httpx2.get(f"{made.url}/jobs", headers=headers).json()["data"][0]
        headers["Authorization"] = f"Bearer {ben}"
        assert httpx2.get(f"{made.url}/jobs", headers=headers).json()["data"] == []
        for path in ("", "/events", "/pictures/0"):
            url = f"{made.url}/jobs/{job['id']}{path}"
            assert httpx2.get(url, headers=headers).status_code == 404
            assert httpx2.get(url).status_code == 401
        assert httpx2.get(f"{made.url}/metrics").status_code == 401
        assert httpx2.get(f"{made.url}/health").status_code == 200


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
def test_new_key_has_a_line_of_its_own(tmp_path: Path, end: str) -> None:
    file = tmp_path / "keys"
    ann = add_key(file, "ann")
    file.write_bytes(file.read_bytes().rstrip() + end.encode())
    ben = add_key(file, "ben")
    keys = Keys.of_file(file)
    assert (keys.owner(ann), keys.owner(ben), len(keys)) == ("ann", "ben", 2)


def test_key_is_added_to_comments_but_not_to_other_files(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# keys of the service")
    assert Keys.of_file(file, empty=True).owner("x") is None
    key = add_key(file, "ann")
    assert Keys.of_file(file).owner(key) == "ann"
    for data in (b"a shopping list", b"\xff\xfe", b"ann \0"):
        file.write_bytes(data)
        with pytest.raises(NextStepError):
            add_key(file, "ben")
        assert file.read_bytes() == data


def test_a_key_has_its_own_limit(app_of: Callable, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    ann, ben = add_key(file, "ann"), add_key(file, "ben")
    with running(app_of(keys=file, per_key=1)) as made:
        slow = {"prompt": "a", "size": "128x128", "steps": 200}
        headers = {"Authorization": f"Bearer {ann}"}
        job = httpx2.post(f"{made.url}/jobs", json=slow, headers=headers).json()
        with pytest.raises(openai.RateLimitError):
            made.openai(ann).images.generate(prompt="a")
        httpx2.post(f"{made.url}/jobs/{job['id']}/cancel", headers=headers)
        assert made.openai(ben).images.generate(prompt="a").data


@pytest.fixture
def client(app_of: Callable) -> TestClient:
    with TestClient(app_of(body_bytes=2000), base_url="http://localhost") as made:
        yield made


def test_headers_and_other_sites(client: TestClient) -> None:
    answer = client.get("/v1/models", headers={"X-Request-ID": "mine-1"})
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-request-id"] == "mine-1"
    assert "access-control-allow-origin" not in answer.headers
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    refused = client.get("/v1/models", headers={"Origin": "https://evil.example"})
    assert refused.status_code == 403
    assert client.get("/v1/models", headers={"Origin": "http://localhost"}).status_code == 200
    for name in ("evil.example", "testserver", "localhost.evil.example", "127.0.0.1.evil.example"):
        assert client.get("/v1/models", headers={"Host": name}).status_code == 421
    assert client.get("/v1/models", headers={"X-Request-ID": "a b\t"}).headers[
        "x-request-id"] != "a b\t"  # fmt: skip


def test_bodies_have_a_limit(client: TestClient) -> None:
    body = {"prompt": "a" * 3000}
    assert client.post("/jobs", json=body).status_code == 413
    pieces = (b"x" * 500 for _ in range(10))
    streamed = client.post("/jobs", content=pieces, headers={"Content-Type": "application/json"})
    assert streamed.json()["error"]["code"] == "request_too_large"


def test_every_error_has_openais_form(client: TestClient) -> None:
    json_type = {"Content-Type": "application/json"}
    answers = [
        client.get("/nothing"), client.delete("/jobs"),
        client.post("/jobs", content=b"{", headers=json_type),
        client.post("/jobs", content=b'{"prompt": "\\ud800"}', headers=json_type),
        client.get("/jobs/../../etc/passwd"),
        client.get("/jobs/" + "0" * 32), client.post("/v1/images/edits", json={}),
        client.post("/v1/images/edits", data={"prompt": "a"}, files={"image": b"<svg/>"}),
        client.post("/v1/images/edits", content=b"--x", headers={
            "Content-Type": "multipart/form-data; boundary=y"}),
        client.post("/v1/images/edits", content=b"--x", headers={
            "Content-Type": "multipart/form-data"}),
    ]  # fmt: skip
    assert [answer.status_code for answer in answers] == [
        404, 405, 400, 400, 404, 404, 400, 400, 400, 400,
    ]  # fmt: skip
    assert answers[1].headers["allow"] == "GET, POST"
    for answer in answers:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_logs_are_json_without_prompts(service: Running) -> None:
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(JsonLogFormatter().format(record))

    logger = logging.getLogger("nextstep.serve")
    handler = Keep()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        service.openai().images.generate(prompt="a most private wish")
        httpx2.get(f"{service.url}/secret-path?secret=1")
        until(lambda: len(lines) == 2)
    finally:
        logger.removeHandler(handler)
    told = [json.loads(line) for line in lines]
    assert {line["route"] for line in told} == {"/v1/images/generations", "other"}
    assert all(line["request_id"] and line["status"] for line in told)
    assert "private" not in str(lines) and "secret" not in str(lines)


def test_the_openapi_page(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert "422" not in operation["responses"], path
            assert "400" in operation["responses"], path
    for path in ("/v1/images/generations", "/v1/images/edits", "/v1/chat/completions"):
        answer = document["paths"][path]["post"]["responses"]["200"]
        assert set(answer["content"]) == {"application/json", "text/event-stream"}
