"""Rollouts through the engine: the same samples however they are drawn, whole shards, documents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nextstep.engine.engine import Engine
from nextstep.engine.pretrained import Parts
from nextstep.errors import ModelFileError, NextStepError
from nextstep.rollout.prompts import ListedPrompts, LivePrompts, RolloutPrompt, read_prompts
from nextstep.rollout.reward_kinds import FunctionReward, open_reward
from nextstep.rollout.rewards import Candidate, Rewards, Score, means
from nextstep.rollout.sampler import Sampler, SamplingOptions
from nextstep.rollout.samples import (
    RolloutGroup,
    RolloutSample,
    before_line,
    supervised_document,
    weighed_document,
)
from nextstep.rollout.store import RolloutStore, read_rollouts, read_shard
from nextstep.text.sequence import IGNORE
from nextstep.text.tokenizer import TextTokenizer
from nextstep.world.descriptions import describe
from nextstep.world.examples import Example
from nextstep.world.lines import with_lines
from nextstep.world.live import WorldSource
from tests.conftest import TINY

PROMPTS = [RolloutPrompt("a", "two cats"), RolloutPrompt("b", "a red apple")]
RED = Image.new("RGB", (32, 32), "red")
EDIT = RolloutPrompt("c", "<image>make it blue", (RED,))
ANSWER = RolloutPrompt("d", "<image>make", (RED,), draws=False)


def sampler(parts: Parts, **options) -> Sampler:
    # A random model that draws its ids writes no text that can be read; the likeliest ones can.
    chosen = {"samples": 3, "temperature": 0.01, **options}
    return Sampler(Engine.of_parts(parts), SamplingOptions(**chosen))


def brightness(image, text, line, facts) -> float:
    return float(np.asarray(image).mean()) / 255 if image is not None else float(len(line))


def same(one: RolloutSample, other: RolloutSample) -> bool:
    alike = (one.tokens is None) == (other.tokens is None)
    if alike and one.tokens is not None and other.tokens is not None:
        alike = torch.equal(one.tokens, other.tokens)
    return alike and one.written == other.written and one.line == other.line


@pytest.mark.parametrize("reasoning", [False, True])
def test_samples_do_not_depend_on_what_is_drawn_with_them(
    tiny_parts: Parts, reasoning: bool
) -> None:
    drawer = sampler(tiny_parts, reasoning=reasoning)
    asked = [(prompt, 40 + n) for n, prompt in enumerate([*PROMPTS, EDIT, ANSWER])]
    together = drawer.draw(asked)
    alone = [drawer.draw([one])[0] for one in asked]
    for one, other in zip(together, alone, strict=True):
        assert all(same(*pair) for pair in zip(one.samples, other.samples, strict=True))
    first = together[0].samples
    assert first[0].tokens is not None and first[1].tokens is not None
    assert not torch.equal(first[0].tokens, first[1].tokens)
    assert bool(first[0].line) == reasoning
    assert all(sample.tokens is None for sample in together[3].samples)


def test_a_line_stands_before_answers_where_the_model_was_trained_so(tiny_parts: Parts) -> None:
    tokenizer = tiny_parts.text_tokenizer
    trained = replace(tiny_parts.defaults, reasoning_before_answers=True)
    for reasoning, lined in ((False, False), (True, False), (False, True), (True, True)):
        defaults = trained if lined else tiny_parts.defaults
        engine = Engine.of_parts(tiny_parts._replace(defaults=defaults))
        options = SamplingOptions(samples=2, reasoning=reasoning, temperature=0.01)
        unasked = replace(ANSWER, text="<image>")
        group, drawn, described = Sampler(engine, options).draw(
            [(ANSWER, 3), (EDIT, 3), (unasked, 3)]
        )
        ends = reasoning and lined
        assert described.text == "<image>"
        assert group.text == ("<image>make\n" if ends else "<image>make")
        assert drawn.text == EDIT.text
        assert tokenizer.decode(before_line(group, tokenizer)).endswith("\n") == ends


def test_rewards_judge_the_answer_without_its_line() -> None:
    seen = []

    def told(image, text, line, facts) -> float:
        seen.append(line)
        return 0.0

    samples = tuple(RolloutSample(i, line="a cat left, red; cat left\nyes") for i in range(2))
    picture = RolloutGroup("k", "t", 1, (1, 1), None, samples)
    answer = replace(picture, draws=False)
    Rewards([(FunctionReward(told, "told"), 1.0)]).judge([ANSWER, EDIT], [answer, picture])
    assert seen == ["yes"] * 2 + [samples[0].line] * 2


def test_a_sample_is_the_picture_of_its_request(tiny_parts: Parts) -> None:
    engine = Engine.of_parts(tiny_parts)
    options = SamplingOptions(samples=2, reasoning=True, temperature=0.01)
    (group,) = Sampler(engine, options).draw([(PROMPTS[0], 9)])
    assert group.samples[1].line
    sample = group.samples[1]
    request = engine.request(group.prompt_of(sample), seed=9, index=1)
    engine.submit(request)
    (event,) = [e for e in engine.run_until_idle() if e.kind == "finished"]
    assert sample.tokens is not None
    assert torch.equal(event.tokens, sample.tokens)


def written(tokenizer: TextTokenizer, line: str, sample: RolloutSample) -> RolloutSample:
    return replace(sample, written=tuple(tokenizer.encode(line)), line=line, ended=True)


def test_documents_are_what_was_drawn(tiny_parts: Parts) -> None:
    """Ids of training are those of the engine, and only what was written is asked for."""
    tokenizer, engine = tiny_parts.text_tokenizer, Engine.of_parts(tiny_parts)
    for group in sampler(tiny_parts).draw([(PROMPTS[0], 3), (EDIT, 4)]):
        sample = written(tokenizer, "a red apple make", group.samples[0])
        sequence = weighed_document(group, sample, tokenizer, 5).sequence
        ids, labels = sequence.ids, sequence.labels
        assert supervised_document(group, sample, tokenizer, 5).sequence.ids == ids
        images = [RED] if group.sources else []
        request = engine.request(group.prompt_of(sample), images, seed=3)
        job = request.sequence(tokenizer, TINY.max_position_embeddings)
        read = job.prompts["conditional"].ids
        assert ids[: len(read)] == list(read)
        asked = [place for place, label in enumerate(labels) if label != IGNORE]
        first = len(before_line(group, tokenizer))
        assert asked == list(range(first, first + len(sample.written) + 1))
        assert tuple(ids[first : first + len(sample.written)]) == sample.written
        assert ids[asked[-1]] == tokenizer.ids.image_area
        sizes = [len(tokens) for tokens in group.pictures(sample)]
        assert sizes == [span.count for span in sequence.images]


@pytest.mark.parametrize("branch", ["conditional", "image-only", "unconditional"])
def test_kept_tokens_of_an_edit_are_drawn_as_they_are_and_not_learned(
    tiny_parts: Parts, branch: str
) -> None:
    """The region of its line decides, in the engine and in every document."""
    tokenizer, engine = tiny_parts.text_tokenizer, Engine.of_parts(tiny_parts)
    (group,) = sampler(tiny_parts).draw([(EDIT, 4)])
    line = "red; change rows 1-2 columns 2-2; blue"
    sample = written(tokenizer, line, group.samples[0])
    request = engine.request(group.prompt_of(sample), [RED], seed=4)
    assert request.given is not None
    sampled = request.given.sampled.nonzero().flatten().tolist()
    assert sampled == [1, 3]
    for document in (
        weighed_document(group, sample, tokenizer, 5),
        supervised_document(group, sample, tokenizer, 5, branch),
    ):
        *sources, drawn = document.sequence.images
        assert drawn.learned == sampled
        assert not any(span.learned for span in sources)
        every = group.pictures(sample)
        assert document.images[-1] == len(every) - 1
        assert len(document.images) == len(document.sequence.images)
    whole = written(tokenizer, "red; change all; blue", group.samples[0])
    drawn = weighed_document(group, whole, tokenizer, 5).sequence.images[-1]
    assert drawn.learned == [0, 1, 2, 3]


def test_text_that_reads_otherwise_than_it_was_written_does_not_count(tiny_parts: Parts) -> None:
    tokenizer = tiny_parts.text_tokenizer
    (group,) = sampler(tiny_parts).draw([(PROMPTS[0], 3)])
    sample = replace(written(tokenizer, "make", group.samples[0]), written=(9, 9, 9))
    labels = weighed_document(group, sample, tokenizer, 5).sequence.labels
    assert set(labels) == {IGNORE}


def test_an_answer_is_asked_for_with_its_end(tiny_parts: Parts) -> None:
    tokenizer = tiny_parts.text_tokenizer
    (group,) = sampler(tiny_parts).draw([(ANSWER, 3)])
    ids = tokenizer.encode(" it blue")
    sample = RolloutSample(0, tuple(ids), True, " it blue")
    sequence = weighed_document(group, sample, tokenizer, 1).sequence
    asked = [label for label in sequence.labels if label != IGNORE]
    assert asked == [*ids, tokenizer.ids.eos]
    assert sequence.ids[-1] == tokenizer.ids.eos


def test_shards_are_read_as_they_were_written(tiny_parts: Parts, tmp_path: Path) -> None:
    groups = sampler(tiny_parts, reasoning=True).draw([(PROMPTS[0], 1), (EDIT, 2), (ANSWER, 3)])
    prompts = [PROMPTS[0], EDIT, ANSWER]
    judged = Rewards([(FunctionReward(brightness, "bright"), 2.0)]).judge(prompts, groups)
    store = RolloutStore(tmp_path / "r", {"model": "tiny"})
    store.write(0, judged[:2])
    store.write(1, judged[2:])
    assert store.has(1) and not store.has(2)
    found = list(read_rollouts(tmp_path / "r"))
    for one, other in zip(found, judged, strict=True):
        assert replace(one, samples=(), sources=()) == replace(other, samples=(), sources=())
        assert all(same(*pair) for pair in zip(one.samples, other.samples, strict=True))
        assert [s.rewards for s in one.samples] == [s.rewards for s in other.samples]
        assert [grid for _, grid in one.sources] == [grid for _, grid in other.sources]
    RolloutStore(tmp_path / "r", {"model": "tiny"})
    with pytest.raises(NextStepError, match="model tiny, not other"):
        RolloutStore(tmp_path / "r", {"model": "other"})
    (tmp_path / "r" / "shard-00000.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelFileError, match="no whole shard"):
        read_shard(tmp_path / "r" / "shard-00000.safetensors")
    with pytest.raises(NextStepError, match="holds no rollouts"):
        list(read_rollouts(tmp_path / "nothing"))


class Constant:
    def __init__(self, name: str, value: float) -> None:
        self.name, self.value = name, value

    def score(self, candidates: list[Candidate]) -> list[Score]:
        return [Score(self.value, {"part": self.value / 2}) for _ in candidates]


def test_rewards_are_summed_by_weight_and_others_only_watched() -> None:
    group = RolloutGroup("k", "t", 1, (1, 1), None, (RolloutSample(0), RolloutSample(1)))
    rewards = Rewards([(Constant("a", 1.0), 2.0), (Constant("b", 3.0), 0.5)], [Constant("c", 9.0)])
    (judged,) = rewards.judge([PROMPTS[0]], [group])
    assert judged.samples[0].rewards == {
        "reward": 3.5, "a": 1.0, "a/part": 0.5, "b": 3.0, "b/part": 1.5, "watch/c": 9.0,
        "watch/c/part": 4.5,
    }  # fmt: skip
    assert means([judged])["reward"] == 3.5
    assert means([judged])["spread"] == 0
    with pytest.raises(NextStepError, match="own name"):
        Rewards([(Constant("a", 1.0), 1.0), (Constant("a", 1.0), 1.0)])


def test_python_rewards_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def worth(image, text, line, facts):\n    return len(text) + facts['bonus']\n")
    reward = open_reward("python", f"{path}:worth")
    prompt = RolloutPrompt("k", "four", facts={"bonus": 2})
    assert [s.value for s in reward.score([Candidate(prompt, RED)])] == [6.0]
    (tmp_path / "syntax.py").write_text("def f(:\n")
    (tmp_path / "name.py").write_text("nothing\n")
    for place, told in (
        (f"{path}:other", "no function 'other'"),
        ("no.where:f", "cannot be loaded"),
        (f"{tmp_path / 'syntax.py'}:f", "cannot be loaded: SyntaxError"),
        (f"{tmp_path / 'name.py'}:f", "cannot be loaded: NameError"),
    ):
        with pytest.raises(NextStepError, match=told):
            open_reward("python", place)
    number = FunctionReward(lambda *_: np.float32(0.5), "number")
    assert [s.value for s in number.score([Candidate(prompt, RED)])] == [0.5]
    fails = FunctionReward(lambda image, text: 1.0, "fails")
    with pytest.raises(NextStepError, match="the reward fails failed: TypeError"):
        fails.score([Candidate(prompt, RED)])
    bad = FunctionReward(lambda *_: float("nan"), "bad")
    with pytest.raises(NextStepError, match="not a finite number"):
        bad.score([Candidate(prompt, RED)])
    with pytest.raises(NextStepError, match="there is no reward"):
        open_reward("nothing")
    with pytest.raises(NextStepError, match="'world'"):
        open_reward("world", options={"nothing": 1})


def test_prompts_of_files(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("one\n\ntwo\n")
    assert [p.text for p in read_prompts(tmp_path / "p.txt")] == ["one", "two"]
    RED.save(tmp_path / "red.png")
    lines = '{"prompt": "say \\"HI\\"", "words": "HI", "key": "x", "images": ["red.png"]}\n'
    (tmp_path / "p.jsonl").write_text(lines)
    (prompt,) = read_prompts(tmp_path / "p.jsonl")
    assert (prompt.key, prompt.facts, prompt.images[0].size) == ("x", {"words": "HI"}, (32, 32))
    for text, told in (("{", "not valid JSON"), ("[]", "must be an object"), ("", "no prompt")):
        (tmp_path / "bad.jsonl").write_text(text)
        with pytest.raises(NextStepError, match=told):
            read_prompts(tmp_path / "bad.jsonl")
    listed = ListedPrompts([RolloutPrompt(str(n), "t") for n in range(5)], seed=1)
    epochs = [[listed.prompt(5 * e + n).key for n in range(5)] for e in range(2)]
    assert all(sorted(epoch) == list("01234") for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_prompts_of_the_world_know_what_must_hold(text_tokenizer: TextTokenizer) -> None:
    source = WorldSource(text_tokenizer, tasks=["two_objects", "remove", "read_count"])
    stream = LivePrompts(source, 64, seed=2)
    kinds = set()
    for number in range(24):
        prompt = stream.prompt(number)
        assert prompt == stream.prompt(number)
        assert prompt.example is not None
        kinds.add((prompt.draws, len(prompt.images)))
        assert prompt.text.count("<image>") == len(prompt.images)
    assert kinds == {(True, 0), (True, 1), (False, 1)}


def test_given_pictures_come_with_their_lines(text_tokenizer: TextTokenizer) -> None:
    source = WorldSource(text_tokenizer, tasks=["story", "read_count"], edition="core-48")
    plain, lined = (LivePrompts(source, 64, 2, reasoning) for reasoning in (False, True))
    drawn = 0
    for number in range(12):
        short, whole = plain.prompt(number), lined.prompt(number)
        assert (short.images, short.target) == (whole.images, whole.target)
        assert whole.example is not None
        if not whole.draws:
            assert short.text == whole.text
            continue
        drawn += 1
        # What stands before the picture that is asked for is what such a model was trained on.
        every = with_lines(whole.example.parts, source.grid, source_line=True)
        text = Example("story", tuple(every)).text
        assert text.startswith(f"{whole.text}\n")
        assert whole.text.count("\n") == len(whole.images) > short.text.count("\n")
        for scene in whole.example.scenes[:-1]:
            assert f"{describe(scene)}<image>" in whole.text
    assert drawn


@pytest.mark.parametrize(("line", "why"), [
    ('{"prompt": "a", "images": "ab.png"}', "'images' must be a list"),
    ('{"prompt": "a", "images": ["none.png"]}', "none.png is no picture here"),
])  # fmt: skip
def test_pictures_of_a_prompt_are_a_list(tmp_path: Path, line: str, why: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(line)
    with pytest.raises(NextStepError, match=why):
        read_prompts(path)
    path.write_text('\ufeff{"prompt": "one\u2028line", "images": null}\r\n{"prompt": "b"}\n')
    assert [one.text for one in read_prompts(path)] == ["one\u2028line", "b"]
