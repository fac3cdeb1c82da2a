"""Local judges: tiny random models through the same code as large ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nextstep.errors import NextStepError
from nextstep.evaluate.benchmarks.base import ItemOutput
from nextstep.evaluate.benchmarks.geneval import COLOURS, GenEval, read_colours
from nextstep.evaluate.judges import load_judge
from nextstep.evaluate.judges.local import TransformersJudge, instances, kind_of
from nextstep.evaluate.judges.protocol import ScoredBox
from tests.evaluate.benchmarks.official import SETS, picture
from tests.evaluate.judges import tiny_models

PICTURE = picture(0)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> TransformersJudge:
    return TransformersJudge(str(tiny_models.chat(tmp_path_factory.mktemp("models") / "llava")))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> TransformersJudge:
    return TransformersJudge(str(tiny_models.clip(tmp_path_factory.mktemp("models") / "clip")))


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> TransformersJudge:
    folder = tiny_models.mask2former(tmp_path_factory.mktemp("models") / "mask2former")
    return TransformersJudge(str(folder))


def test_a_chat_model_answers_alike_every_time(chat: TransformersJudge) -> None:
    assert chat.name == "llava"
    said = chat.ask("is it a red cup", [PICTURE], max_tokens=4)
    assert said == chat.ask("is it a red cup", [PICTURE], max_tokens=4)
    assert chat.ask("is it a red cup", [PICTURE, picture(1)], system="no", max_tokens=2) is not None
    assert chat.ask("is it a red cup", max_tokens=2) is not None


def test_probabilities_are_those_of_the_first_token(chat: TransformersJudge) -> None:
    words, forms = chat.processor.tokenizer, ("Yes", "yes", " Yes", " yes")
    yes = chat.yes_probability("is it a cup", [PICTURE])
    assert 0 < yes < 1
    inputs = chat._chat("is it a cup", [PICTURE], "")
    with torch.inference_mode():
        likely = chat.model(**inputs).logits[0, -1].softmax(-1)
    ids = {words(form, add_special_tokens=False).input_ids[0] for form in forms}
    assert yes == pytest.approx(float(likely[sorted(ids)].sum()), rel=1e-5)
    assert yes != pytest.approx(chat.yes_probability("is it a cup", [picture(3)]), rel=1e-7)


def test_a_dual_encoder_embeds_pictures_and_texts(clip: TransformersJudge) -> None:
    seen, read = clip.embed([PICTURE, picture(1)]), clip.embed(["a red cup", "no"])
    assert seen.shape == read.shape == (2, 8)
    for one in (seen, read):
        np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(clip.embed([picture(1)])[0], seen[1], atol=1e-5)
    cup = ScoredBox("cup", 0.9, (2, 2, 20, 20))
    assert read_colours(clip, PICTURE, [cup], "cup")[0] in COLOURS


def test_a_segmenter_finds_objects_with_masks(masks: TransformersJudge) -> None:
    found = masks.detect(picture(0, (40, 24)))
    assert found
    assert found == sorted(found, key=lambda one: -one.score)
    for one in found:
        assert one.label in ("cup", "mouse", "dog")
        assert 0 < one.score < 1
        assert one.mask is not None
        assert one.mask.shape == (24, 40)
        left, top, right, bottom = one.box
        assert one.mask[:, int(left)].any()
        assert one.mask[int(bottom) - 1].any()
        assert (0 <= left < right <= 40) and (0 <= top < bottom <= 24)


def test_geneval_with_local_models(
    masks: TransformersJudge, clip: TransformersJudge, tmp_path: Path
) -> None:
    benchmark = GenEval()
    item = benchmark.read(SETS["geneval"](tmp_path))[0]
    judges = {"detector": masks, "colours": clip}
    found = benchmark.measure(item, ItemOutput([PICTURE] * 4), judges)
    assert found.values["correct"] in (0.0, 1.0)
    assert not found.failures


def test_a_detector_of_boxes(tmp_path: Path) -> None:
    judge = load_judge(f"transformers:{tiny_models.detr(tmp_path / 'yolos')}")
    found = judge.detect(picture(0, (40, 24)))
    assert len(found) == 5
    assert all(one.mask is None and one.label in ("cup", "dog") for one in found)


def test_instances_by_hand() -> None:
    # Two queries; the first is a cup (0.8) in the left half, the second nothing much.
    class_logits = torch.log(torch.tensor([[0.8, 0.1, 0.1], [0.05, 0.05, 0.9]]))
    mask_logits = torch.full((2, 4, 4), -20.0)
    mask_logits[0, :, :2] = 20.0
    found = instances(class_logits, mask_logits, (8, 8))
    label, score, box, mask = found[0]
    assert (label, box) == (0, (0.0, 0.0, 4.0, 8.0))
    assert score == pytest.approx(0.8, rel=0.02)
    assert mask[:, :4].all()
    assert not mask[:, 4:].any()
    # The same query as class 1, and no object without a mask.
    assert [one[0] for one in found] == [0, 1]
    assert found[1][1] == pytest.approx(0.1, rel=0.02)


def test_judges_report_what_they_cannot_do(
    chat: TransformersJudge, clip: TransformersJudge
) -> None:
    with pytest.raises(NextStepError, match="llava cannot detect objects"):
        chat.detect(PICTURE)
    with pytest.raises(NextStepError, match="llava cannot embed"):
        chat.embed([PICTURE])
    with pytest.raises(NextStepError, match="clip cannot answer"):
        clip.ask("q")
    with pytest.raises(NextStepError, match="clip cannot give the probability"):
        clip.yes_probability("q")


def test_folders_that_are_no_judges(tmp_path: Path) -> None:
    import transformers

    with pytest.raises(NextStepError, match="cannot be loaded as a judge"):
        load_judge(f"transformers:{tmp_path / 'none'}")
    config = transformers.BertConfig(architectures=["BertForMaskedLM"])
    with pytest.raises(ValueError, match="BertForMaskedLM is none that can judge"):
        kind_of(config)
