"""Model folders of transformers with tiny random weights: the real classes, on a CPU in moments."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers as tf

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}\n"
    "{% endfor %}assistant:"
)
SIDE = 32
VISION = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
              image_size=SIDE, patch_size=16)  # fmt: skip


def tokenizer() -> tf.PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<unk>", "<pad>", "<s>", "</s>", "<image>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    made.train_from_iterator(["Yes yes No no is it a red cup"] * 4, trainer)
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", pad_token="<pad>", bos_token="<s>",
        eos_token="</s>", extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip


def images() -> tf.CLIPImageProcessorPil:
    return tf.CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )


def chat(folder: Path) -> Path:
    """A LLaVA: CLIP's vision tower before a Llama."""
    torch.manual_seed(0)
    text = tokenizer()
    config = tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(**VISION),
        text_config=tf.LlamaConfig(
            vocab_size=len(text), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, pad_token_id=1, bos_token_id=2,
            eos_token_id=3,
        ),
        image_token_index=text.convert_tokens_to_ids("<image>"),
        image_seq_length=4, vision_feature_layer=-1,
    )  # fmt: skip
    tf.LlavaForConditionalGeneration(config).save_pretrained(folder)
    tf.LlavaProcessor(
        images(), text, patch_size=16, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=TEMPLATE,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def clip(folder: Path) -> Path:
    torch.manual_seed(0)
    text = tokenizer()
    config = tf.CLIPConfig(
        text_config=dict(
            vocab_size=len(text), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=64, eos_token_id=3, bos_token_id=2,
            pad_token_id=1,
        ),
        vision_config=VISION, projection_dim=8,
    )  # fmt: skip
    tf.CLIPModel(config).save_pretrained(folder)
    tf.CLIPProcessor(images(), text).save_pretrained(folder)
    return folder


def mask2former(folder: Path) -> Path:
    torch.manual_seed(0)
    side = 64  # its last stage, at 1/32, needs more than one place to be normalised
    backbone = tf.SwinConfig(
        image_size=side, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = tf.Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32,
        encoder_feedforward_dim=16, dim_feedforward=16, encoder_layers=1, decoder_layers=2,
        num_attention_heads=2, num_queries=5, id2label={0: "cup", 1: "mouse", 2: "dog"},
    )  # fmt: skip
    tf.Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    tf.Mask2FormerImageProcessorPil(
        size={"height": side, "width": side}, size_divisor=32
    ).save_pretrained(folder)
    return folder


def detr(folder: Path) -> Path:
    torch.manual_seed(0)
    config = tf.YolosConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        image_size=[SIDE, SIDE], patch_size=16, num_detection_tokens=5,
        id2label={0: "cup", 1: "dog"},
    )  # fmt: skip
    tf.YolosForObjectDetection(config).save_pretrained(folder)
    tf.YolosImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder
