"""A growing sequence: the cache changes nothing, and what was read is never lost or half kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nextstep.engine.decode import DecodeSettings, Prompt, decode_tokens
from nextstep.engine.jacobi import Lookahead
from nextstep.engine.session import NucleusChoice, ReadPicture, Session
from nextstep.errors import NextStepError
from nextstep.flow.guidance import CONDITIONAL, IMAGE_ONLY, UNCONDITIONAL, GuidanceSettings
from nextstep.flow.noise import KeyedNoise
from nextstep.flow.solvers import SolverSettings
from nextstep.model.nextstep import NextStepModel
from nextstep.text.sequence import (
    Picture,
    Text,
    build_sequence,
    without_text,
    without_text_and_pictures,
)
from nextstep.text.tokenizer import TextTokenizer
from nextstep.vae.latents import raster_coordinates, token_norm
from tests.conftest import TINY, random_model

GRID = (2, 3)


@pytest.fixture
def model() -> NextStepModel:
    return random_model(replace(TINY, image_position_side=4))


@pytest.fixture
def session(model: NextStepModel, text_tokenizer: TextTokenizer) -> Session:
    return Session(model, text_tokenizer)


def how(guidance: float = 2.0, image: float = 1.5, has_images: bool = True) -> DecodeSettings:
    return DecodeSettings(
        GRID, SolverSettings("ode", 3), GuidanceSettings(guidance, image), has_images=has_images
    )


def a_picture(seed: int = 0) -> ReadPicture:
    generator = torch.Generator().manual_seed(seed)
    return ReadPicture(token_norm(torch.randn(6, TINY.token_size, generator=generator)), GRID)


def noise(seed: int = 0) -> KeyedNoise:
    return KeyedNoise([(seed, 0)], 1, TINY.token_size)


@torch.inference_mode()
def state_in_one_pass(session: Session) -> torch.Tensor:
    """The last state of the same sequence read at once, without a cache."""
    tokens = torch.cat([p.tokens for p in session.pictures]) if session.pictures else None
    places = [raster_coordinates(p.grid) for p in session.pictures]
    embeddings = session.model.embed(
        torch.tensor([session.ids]), tokens, torch.cat(places) if places else None
    )
    return session.model.hidden(embeddings)[:, -1]


def test_reading_and_writing_in_turns_equals_one_pass(session: Session) -> None:
    session.read_text("a red apple")
    session.read_picture(a_picture())
    session.read_text("make it blue")
    session.draw(how(), noise())
    session.read_text("two cats")
    session.write_text(5)
    assert torch.allclose(session._last(), state_in_one_pass(session), atol=1e-4)


def test_drawing_equals_the_batched_decoder(
    session: Session, text_tokenizer: TextTokenizer
) -> None:
    """An edit through a session is the edit of the pipeline's decoder, branch for branch."""
    source = a_picture()
    session.read_picture(source)
    session.read_text("make it blue")
    drawn = session.draw(how(), noise(7))
    parts = [Picture(GRID), Text("make it blue"), Picture(GRID)]
    rows = {
        CONDITIONAL: (parts, [source]),
        IMAGE_ONLY: (without_text(parts, ""), [source]),
        UNCONDITIONAL: (without_text_and_pictures(parts, ""), []),
    }
    prompts = {}
    for name, (branch, given) in rows.items():
        prompt = build_sequence(branch, text_tokenizer).prompt()
        prompts[name] = [Prompt(prompt.ids, [p.tokens for p in given], [p.grid for p in given])]
    expected = decode_tokens(session.model, prompts, how(), noise(7))[0]
    assert torch.allclose(drawn.tokens, expected, atol=1e-4)


def test_looking_ahead_keeps_the_sequence_whole(session: Session) -> None:
    """Without tolerance it is the plain picture; with it the cache still belongs to the tokens."""
    session.read_picture(a_picture())
    session.read_text("make it blue")
    place, plain = len(session), session.fork().draw(how(), noise(3)).tokens
    ahead = replace(how(), lookahead=Lookahead(4, 0.0))
    assert torch.allclose(session.draw(ahead, noise(3)).tokens, plain, atol=1e-4)
    session.rewind(place)
    counts: list[int] = []
    loose = replace(how(), lookahead=Lookahead(4, 1.0))
    session.draw(loose, noise(3), on_token=lambda done, tokens: counts.append(done))
    assert counts == [1, 2, 3, 4, 5, 6]
    session.read_text("two cats")
    assert torch.allclose(session._last(), state_in_one_pass(session), atol=1e-4)


def test_a_fork_and_a_rewind_leave_the_rest_alone(session: Session) -> None:
    session.read_text("a red apple")
    place = len(session)
    other = session.fork()
    first = session.draw(how(has_images=False), noise(1))
    other.read_text("make it blue")
    assert len(session.pictures) == 1
    assert not other.pictures
    session.rewind(place)
    assert not session.pictures
    again = session.draw(how(has_images=False), noise(1))
    assert torch.allclose(first.tokens, again.tokens, atol=1e-5)
    with pytest.raises(ValueError, match="inside a picture"):
        session.rewind(len(session) - 3)


def test_the_cache_grows(
    model: NextStepModel, text_tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nextstep.engine.session.ROOM", 16)
    session = Session(model, text_tokenizer)
    limit = session.model.config.max_position_embeddings
    for _ in range(12):
        session.read_text("a red apple make it blue two cats")
    session.read_picture(a_picture())
    assert 16 < len(session) <= session.cache.capacity
    assert torch.allclose(session._last(), state_in_one_pass(session), atol=1e-4)
    with pytest.raises(NextStepError, match="reads at most"):
        for _ in range(limit):
            session.read_text("a red apple make it blue two cats")


def test_text_never_holds_parts_of_a_picture(session: Session) -> None:
    special = session.tokenizer.ids
    session.read_text("two")
    wild = NucleusChoice(temperature=50.0, top_p=1.0, seed=3)
    end = session.write_text(200, wild, pictures=False)
    parts = {special.pad, special.begin_of_image, special.end_of_image, special.image_placeholder}
    assert not (parts | {special.image_area, special.eos}) & set(end.ids)
    assert end.reason in ("end", "limit")


def test_writing_stops_for_a_picture_and_at_the_end(session: Session) -> None:
    special = session.tokenizer.ids
    session.read_text("two")
    wanted = iter([10, special.image_area])
    assert session.write_text(9, lambda logits: next(wanted)).reason == "picture"
    wanted = iter([10, special.eos])
    end = session.write_text(9, lambda logits: next(wanted))
    assert (end.ids, end.reason) == ([10], "end")


def test_choices() -> None:
    logits = torch.tensor([0.0, 3.0, 2.0, -9.0])
    assert NucleusChoice(1.0, 0.5, 0)(logits) == 1
    drawn = {NucleusChoice(1.0, 0.99, seed)(logits) for seed in range(60)}
    assert {1, 2} <= drawn
    assert 3 not in drawn
    assert NucleusChoice(1.0, 0.9, 5)(logits) == NucleusChoice(1.0, 0.9, 5)(logits)


def test_nothing_to_go_on_from(session: Session) -> None:
    with pytest.raises(NextStepError, match="read a text or a picture first"):
        session.write_text(3)
