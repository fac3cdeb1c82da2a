"""Judges that run here through transformers: vision-language models, detectors, CLIP.

Legend: B pictures, N inputs, Q queries, C classes, D size of an embedding, h w a mask's places.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from nextstep.errors import NextStepError
from nextstep.evaluate.judges.protocol import YES, Judge, ScoredBox

MOST_DETECTIONS = 100
"""Of a picture, over all classes: `max_per_image` of the detector that GenEval uses."""

CLASSES = {
    "chat": "AutoModelForImageTextToText",
    "detect": "AutoModelForUniversalSegmentation",
    "boxes": "AutoModelForObjectDetection",
    "embed": "AutoModel",
}
"""What a judge is loaded as -> class of transformers."""


class TransformersJudge(Judge):
    """A model folder or hub id that transformers can load.

    What it can do follows from its kind: models of images and text answer, segmenters and
    detectors find objects, dual encoders embed.

    Args:
        path: folder or hub id.
        device: such as "cpu" or "cuda".
        dtype: of the weights; None as stored.

    Raises:
        NextStepError: when transformers is missing or does not know the model.
    """

    deterministic = True

    def __init__(self, path: str, device: str = "cpu", dtype: torch.dtype | None = None) -> None:
        try:
            import transformers
        except ImportError:
            raise NextStepError(
                "a local judge needs transformers: pip install 'open-nextstep[eval]'"
            ) from None
        try:
            config = transformers.AutoConfig.from_pretrained(path)
            self.kind = kind_of(config)
            # Detectors and encoders of pictures alone have no text tokenizer.
            processor = (
                transformers.AutoImageProcessor
                if self.kind in ("detect", "boxes")
                else transformers.AutoProcessor
            )
            self.processor: Any = processor.from_pretrained(path)
            loader = getattr(transformers, CLASSES[self.kind])
            self.model: Any = loader.from_pretrained(path, dtype=dtype or "auto")
        except (OSError, ValueError, KeyError, ImportError) as error:
            said = " ".join(str(error).split())[:300]
            raise NextStepError(f"{path} cannot be loaded as a judge: {said}") from None
        self.model.eval().to(device)
        self.name, self.device = str(path).rstrip("/").split("/")[-1], device
        self._lock = threading.Lock()

    @torch.inference_mode()
    def ask(
        self,
        question: str,
        pictures: Sequence[Image.Image] = (),
        *,
        system: str = "",
        max_tokens: int = 512,
        attempt: int = 0,
    ) -> str:
        """See `Judge.ask`; the likeliest answer, so there is no other attempt."""
        if self.kind != "chat":
            raise self._cannot("answer questions")
        inputs = self._chat(question, pictures, system)
        with self._lock:
            made = self.model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
        # Encoder-decoders give the answer alone, decoders the question before it.
        own = 0 if self.model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        return str(self.processor.batch_decode(made[:, own:], skip_special_tokens=True)[0]).strip()

    @torch.inference_mode()
    def yes_probability(
        self, question: str, pictures: Sequence[Image.Image] = (), answers: Sequence[str] = YES
    ) -> float:
        """See `Judge.yes_probability`; every answer with and without a space before it."""
        if self.kind != "chat":
            raise self._cannot("give the probability of an answer")
        inputs = self._chat(question, pictures, "")
        if self.model.config.is_encoder_decoder:
            start = torch.tensor([[self.model.config.decoder_start_token_id]])
            inputs["decoder_input_ids"] = start.to(self.device)
        with self._lock:
            logits = self.model(**inputs).logits[0, -1]
        ids = sorted({self._first_id(form) for a in answers for form in (a, f" {a}")})
        return float(logits.float().softmax(-1)[ids].sum())

    @torch.inference_mode()
    def detect(self, picture: Image.Image) -> list[ScoredBox]:
        """See `Judge.detect`."""
        if self.kind not in ("detect", "boxes"):
            raise self._cannot("detect objects")
        inputs = self.processor(images=picture, return_tensors="pt").to(self.device)
        inputs = {k: v for k, v in inputs.items() if k in ("pixel_values", "pixel_mask")}
        with self._lock:
            outputs = self.model(**inputs)
        if self.kind == "boxes":
            return self._boxes(outputs, picture)
        found = instances(
            outputs.class_queries_logits[0], outputs.masks_queries_logits[0],
            (picture.height, picture.width),
        )  # fmt: skip
        labels = self.model.config.id2label
        return [ScoredBox(labels[label], score, box, mask) for label, score, box, mask in found]

    @torch.inference_mode()
    def embed(self, inputs: Sequence[Image.Image | str]) -> np.ndarray:
        """See `Judge.embed`; all texts or all pictures."""
        if self.kind != "embed":
            raise self._cannot("embed pictures")
        if isinstance(inputs[0], str):
            given = self.processor(
                text=list(inputs), return_tensors="pt", padding=True, truncation=True
            )
            compute = self.model.get_text_features
        else:
            given = self.processor(images=list(inputs), return_tensors="pt")
            compute = self.model.get_image_features
        with self._lock:
            found = compute(**given.to(self.device))
        # transformers 5 wraps the projected features; earlier versions give the tensor.
        features = found if isinstance(found, Tensor) else found.pooler_output
        array: np.ndarray = F.normalize(features.float(), dim=-1).cpu().numpy()
        return array

    def _boxes(self, outputs: Any, picture: Image.Image) -> list[ScoredBox]:
        size = [(picture.height, picture.width)]
        found = self.processor.post_process_object_detection(
            outputs, threshold=0.0, target_sizes=size
        )[0]
        names = self.model.config.id2label
        rows = zip(found["labels"], found["scores"], found["boxes"], strict=True)
        made = [
            ScoredBox(names[int(label)], float(score), tuple(box.tolist()))
            for label, score, box in rows
        ]
        return sorted(made, key=lambda one: -one.score)[:MOST_DETECTIONS]

    def _chat(self, question: str, pictures: Sequence[Image.Image], system: str) -> Any:
        content = [{"type": "image"} for _ in pictures] + [{"type": "text", "text": question}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if system:
            told = [{"type": "text", "text": system}]
            messages.insert(0, {"role": "system", "content": told})
        if getattr(self.processor, "chat_template", None):
            text = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        else:
            text = f"{system}\n{question}".strip()
        given = self.processor(text=[text], images=list(pictures) or None, return_tensors="pt")
        return given.to(self.device, self.model.dtype)

    def _first_id(self, text: str) -> int:
        return int(self.processor.tokenizer(text, add_special_tokens=False).input_ids[0])


def kind_of(config: Any) -> str:
    """What a model is loaded as, by the architecture that its configuration names.

    Raises:
        ValueError: when it is none that can judge.
    """
    named = " ".join(config.architectures or [])
    if "UniversalSegmentation" in named:
        return "detect"
    if "ObjectDetection" in named:
        return "boxes"
    if any(word in named for word in ("ConditionalGeneration", "CausalLM", "VisionText")):
        return "chat"
    if named.endswith("Model"):
        return "embed"
    raise ValueError(f"its architecture {named or '(none)'} is none that can judge")


def instances(
    class_logits: Tensor, mask_logits: Tensor, size: tuple[int, int]
) -> list[tuple[int, float, tuple[float, float, float, float], np.ndarray]]:
    """Objects of a mask-classification network, as its COCO evaluation reads them.

    The 100 likeliest pairs of query and class are kept; a pair's confidence is its class
    probability times the mean probability inside its mask (arXiv 2112.01527, appendix; the
    detection toolbox that GenEval runs does the same).

    Args:
        class_logits: [Q, C + 1], "no object" last.
        mask_logits: [Q, h, w].
        size: (H, W) of the picture.

    Returns:
        Class, confidence, box and mask [H, W] of each, likeliest first.
    """
    scores = class_logits.float().softmax(-1)[:, :-1]
    classes = scores.shape[1]
    top = scores.flatten().topk(min(MOST_DETECTIONS, scores.numel()))
    found = []
    for score, place in zip(top.values.tolist(), top.indices.tolist(), strict=True):
        query, label = divmod(place, classes)
        logits = F.interpolate(
            mask_logits[query][None, None].float(), size, mode="bilinear", align_corners=False
        )[0, 0]
        mask = logits > 0
        if not bool(mask.any()):
            continue
        confidence = score * float(logits.sigmoid()[mask].mean())
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        box = (
            float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1),
        )  # fmt: skip
        found.append((label, confidence, box, mask.cpu().numpy()))
    return sorted(found, key=lambda one: -one[1])
