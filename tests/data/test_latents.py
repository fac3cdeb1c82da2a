"""The latent cache: what it holds, whose it is, and how it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from nextstep.data.batch import pack_rows
from nextstep.data.documents import Document, SampleError
from nextstep.data.filters import Filters
from nextstep.data.latents import CachedSource, CacheReport, LatentCache, build_cache
from nextstep.data.latents import tokenizer_hash as hash_of
from nextstep.data.loader import Loader, LoaderConfig
from nextstep.data.shards import RawSample, ShardSet, ShardWriter
from nextstep.data.sources import ShardSource, SourceOptions
from nextstep.errors import NextStepError
from nextstep.image.pictures import to_pixels
from nextstep.text.tokenizer import TextTokenizer
from nextstep.utils.files import read_json, write_json
from nextstep.vae.tokenizer import ImageTokenizer
from tests.conftest import TINY_VAE
from tests.data.made_up import MadeUpEntry, MadeUpSet
from tests.data.toys import picture as encoded_picture

OPTIONS = SourceOptions(areas=(32,))


@pytest.fixture(scope="module")
def tokenizer() -> Iterator[ImageTokenizer]:
    torch.manual_seed(3)
    yield ImageTokenizer(TINY_VAE)


def edits(count: int = 7) -> MadeUpSet:
    sizes = [((40, 40), (40, 40)), ((80, 30), (30, 80)), ((33, 50), (50, 33), (40, 40))]
    return MadeUpSet(
        "edits",
        [
            MadeUpEntry(f"edits/s/{i}", {"caption": "make it red"}, sizes[i % 3])
            for i in range(count)
        ],
    )


def edit_source(
    text_tokenizer: TextTokenizer, samples: MadeUpSet, options: SourceOptions = OPTIONS
) -> ShardSource:
    return ShardSource(samples, "image_to_image", text_tokenizer, options)


def cached(
    source: ShardSource, tokenizer: ImageTokenizer, folder: Path, **options: int
) -> CachedSource:
    build_cache(source, tokenizer, folder, samples_per_part=3, **options)
    return CachedSource(source, LatentCache(folder, hash_of(tokenizer)))


def made(source: ShardSource | CachedSource, index: int, seed: int = 0) -> Document:
    document = source.document(index, seed)
    assert document is not None
    return document


def test_tokens_are_those_of_the_pictures(
    text_tokenizer: TextTokenizer, tokenizer: ImageTokenizer, tmp_path: Path
) -> None:
    source = edit_source(text_tokenizer, edits())
    found = cached(source, tokenizer, tmp_path)
    grids = set()
    for index in range(7):
        for seed in range(3):
            document = made(source, index, seed)
            same = made(found, index, seed)
            assert (same.sequence, same.images) == (document.sequence, document.images)
            tokens = found.pictures(same)
            for picture, token, span in zip(
                source.pictures(document), tokens, document.sequence.images, strict=True
            ):
                expected = tokenizer.encode_tokens(to_pixels([picture]))[0]
                assert token.dtype == torch.float16
                assert token.shape == (span.count, 64)
                assert torch.allclose(token.float(), expected, atol=2e-3)
                grids.add(span.grid)
    assert len(grids) > 1


def test_the_report_counts(
    text_tokenizer: TextTokenizer, tokenizer: ImageTokenizer, tmp_path: Path
) -> None:
    samples = edits()
    samples.broken = {2: "corrupt picture", 5: "corrupt picture"}
    source = edit_source(text_tokenizer, samples)
    parts: list[tuple[int, int]] = []
    report = build_cache(
        source, tokenizer, tmp_path, samples_per_part=3, on_part=lambda *p: parts.append(p)
    )
    # Samples 2 and 5 had three pictures, all others two.
    assert report == CacheReport(7, 10, 4 * 10, {"corrupt picture": 2})
    assert parts == [(1, 3), (2, 3), (3, 3)]
    size = sum(path.stat().st_size for path in tmp_path.glob("*.bin"))
    assert size == report.tokens * 64 * 2


def test_samples_broken_then_are_broken_now(
    text_tokenizer: TextTokenizer, tokenizer: ImageTokenizer, tmp_path: Path
) -> None:
    samples = edits()
    samples.broken = {4: "corrupt picture"}
    found = cached(edit_source(text_tokenizer, samples), tokenizer, tmp_path)
    with pytest.raises(SampleError, match="edits/s/4: corrupt picture") as caught:
        found.pictures(made(found, 4))
    assert caught.value.reason == "corrupt picture"
    assert found.pictures(made(found, 3))


def test_a_cache_that_was_broken_off_goes_on_to_the_same_bytes(
    text_tokenizer: TextTokenizer, tokenizer: ImageTokenizer, tmp_path: Path
) -> None:
    def contents(folder: Path) -> dict[str, bytes]:
        whole = [path for path in sorted(folder.iterdir()) if path.suffix != ".part"]
        return {path.name: path.read_bytes() for path in whole}

    whole, broken_off = tmp_path / "whole", tmp_path / "broken"
    cached(edit_source(text_tokenizer, edits()), tokenizer, whole, workers=1)

    class StopError(Exception):
        pass

    def stop(done: int, _: int) -> None:
        if done == 2:
            raise StopError

    samples = edits()
    source = edit_source(text_tokenizer, samples)
    with pytest.raises(StopError):
        build_cache(source, tokenizer, broken_off, samples_per_part=3, on_part=stop)
    # As if the third part had been cut off between its two files, and a scratch file left.
    (broken_off / "part-00002.bin").write_bytes(b"half")
    (broken_off / "part-00002.json.part").write_bytes(b"{")
    with pytest.raises(NextStepError, match="has 2 of 3 parts"):
        LatentCache(broken_off, hash_of(tokenizer))
    samples.decoded.clear()
    cached(source, tokenizer, broken_off)
    assert sorted(samples.decoded) == [6], "finished parts are not encoded again"
    assert contents(broken_off) == contents(whole)


def test_another_tokenizers_cache_is_refused(
    text_tokenizer: TextTokenizer, tokenizer: ImageTokenizer, tmp_path: Path
) -> None:
    source = edit_source(text_tokenizer, edits())
    cached(source, tokenizer, tmp_path)
    torch.manual_seed(4)
    other = ImageTokenizer(TINY_VAE)
    with pytest.raises(NextStepError, match="was made with tokenizer"):
        LatentCache(tmp_path, hash_of(other))
    with pytest.raises(NextStepError, match="was made with tokenizer"):
        build_cache(source, other, tmp_path)


def test_the_hash_is_of_what_latents_depend_on(tokenizer: ImageTokenizer) -> None:
    torch.manual_seed(5)
    twin = ImageTokenizer(TINY_VAE)
    twin.load_state_dict(tokenizer.state_dict())
    assert hash_of(twin) == hash_of(tokenizer)
    with torch.no_grad():
        next(twin.autoencoder.decoder.parameters()).add_(1)
    assert hash_of(twin) == hash_of(tokenizer), "a refined decoder leaves latents as they are"
    with torch.no_grad():
        next(twin.autoencoder.encoder.parameters()).view(-1)[0] += 1e-3
    assert hash_of(twin) != hash_of(tokenizer)
    plain = ImageTokenizer(replace(TINY_VAE, token_norm=False))
    plain.load_state_dict(tokenizer.state_dict())
    assert hash_of(plain) != hash_of(tokenizer)


def test_a_cache_of_other_data_is_refused(
    text_tokenizer: TextTokenizer, tokenizer: ImageTokenizer, tmp_path: Path
) -> None:
    cached(edit_source(text_tokenizer, edits()), tokenizer, tmp_path)
    cache = LatentCache(tmp_path, hash_of(tokenizer))
    with pytest.raises(NextStepError, match=r"areas = \[32\], and now it is \[64\]"):
        CachedSource(edit_source(text_tokenizer, edits(), SourceOptions(areas=(64,))), cache)
    with pytest.raises(NextStepError, match="samples = 7, and now it is 8"):
        CachedSource(edit_source(text_tokenizer, edits(8)), cache)
    with pytest.raises(NextStepError, match="set crop to centre"):
        CachedSource(edit_source(text_tokenizer, edits(), replace(OPTIONS, crop="random")), cache)
    moved = edits()
    moved.entries[0] = replace(moved.entries[0], key="edits/s/new")
    source = CachedSource(edit_source(text_tokenizer, moved), cache)
    with pytest.raises(SampleError, match="edits/s/new: not in the latent cache"):
        source.pictures(made(source, 0))
    shorter = edits()
    shorter.entries[1] = replace(shorter.entries[1], sizes=((30, 80), (80, 30)))
    source = CachedSource(edit_source(text_tokenizer, shorter), cache)
    with pytest.raises(SampleError, match="picture 0 at"):
        source.pictures(made(source, 1))


def test_a_cache_of_a_set_that_was_written_anew_is_refused(
    text_tokenizer: TextTokenizer, tokenizer: ImageTokenizer, tmp_path: Path
) -> None:
    """Of as many samples under the same keys: only what the shards hold has changed."""

    def source_of(seed: int) -> ShardSource:
        folder = tmp_path / f"set{seed}"
        with ShardWriter(folder, "toys", "image_text") as writer:
            for number in range(2):
                writer.add(RawSample({"caption": "a"}, (encoded_picture(seed + number, (40, 40)),)))
        return ShardSource(ShardSet(folder), "image_text", text_tokenizer, OPTIONS)

    old, new = source_of(1), source_of(5)
    cached(old, tokenizer, tmp_path / "cache")
    for use in (cached, lambda s, t, f: CachedSource(s, LatentCache(f, hash_of(t)))):
        with pytest.raises(NextStepError, match=r"was made with shards = \w{16}, and now it is"):
            use(new, tokenizer, tmp_path / "cache")
    # A cache from before sets were noted down is taken as it is.
    head = tmp_path / "cache" / "cache.json"
    told = {n: value for n, value in read_json(head).items() if n != "shards"}
    write_json(head, told)
    assert CachedSource(old, LatentCache(tmp_path / "cache", hash_of(tokenizer)))


def test_filtered_samples_are_not_encoded(
    text_tokenizer: TextTokenizer, tokenizer: ImageTokenizer, tmp_path: Path
) -> None:
    options = replace(OPTIONS, filters=Filters(aspect_ratio=1.2))
    samples = edits()
    source = edit_source(text_tokenizer, samples, options)
    found = cached(source, tokenizer, tmp_path)
    assert sorted(set(samples.decoded)) == [0, 3, 6]
    assert made(found, 3)
    # With wider filters the samples are asked for, and are not there.
    wide = CachedSource(edit_source(text_tokenizer, samples), found.cache)
    with pytest.raises(SampleError, match="not in the latent cache"):
        wide.pictures(made(wide, 1))


def test_damaged_caches_are_named(
    text_tokenizer: TextTokenizer, tokenizer: ImageTokenizer, tmp_path: Path
) -> None:
    with pytest.raises(NextStepError, match="holds no latent cache"):
        LatentCache(tmp_path, hash_of(tokenizer))
    source = edit_source(text_tokenizer, edits())
    cached(source, tokenizer, tmp_path)
    (tmp_path / "part-00001.bin").write_bytes(b"short")
    found = CachedSource(source, LatentCache(tmp_path, hash_of(tokenizer)))
    with pytest.raises(NextStepError, match=r"delete part-00001\.json and build"):
        found.pictures(made(found, 4))
    cut = replace(OPTIONS, token_pixels=32)
    with pytest.raises(NextStepError, match="set token_pixels to 16"):
        build_cache(edit_source(text_tokenizer, edits(), cut), tokenizer, tmp_path)


def test_latents_out_of_range_are_broken_samples(
    text_tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    torch.manual_seed(6)
    huge = ImageTokenizer(replace(TINY_VAE, scaling_factor=1e6))
    report = build_cache(edit_source(text_tokenizer, edits(3)), huge, tmp_path)
    assert report == CacheReport(3, 0, 0, {"latents out of range": 3})


def test_rows_of_a_cache_are_rows_of_pixels_once_encoded(
    text_tokenizer: TextTokenizer, tokenizer: ImageTokenizer, tmp_path: Path
) -> None:
    source = edit_source(text_tokenizer, edits())
    config = LoaderConfig(row_length=96, rows_per_step=2, micro_batch_rows=2, window_rows=2)
    batch_of = partial(pack_rows, row_length=96, pad_id=1, head_batch_mul=2)
    plain, fast = (
        Loader([each], [1.0], batch_of, config)
        for each in (source, cached(source, tokenizer, tmp_path))
    )
    for _ in range(3):
        (pixels,), (tokens,) = plain.next_step().batches, fast.next_step().batches
        assert pixels.keys == tokens.keys
        assert torch.equal(pixels.ids, tokens.ids)
        assert torch.equal(pixels.noise, tokens.noise)
        assert tokens.pictures == ()
        encoded = pixels.image_tokens.clone()
        for group in pixels.pictures:
            encoded[group.rows] = tokenizer.encode_tokens(to_pixels(list(group.pixels.numpy())))
        assert len(encoded) > 0
        assert torch.allclose(encoded, tokens.image_tokens, atol=2e-3)


def test_a_rank_without_rows_has_batches_without_documents(text_tokenizer: TextTokenizer) -> None:
    source = edit_source(text_tokenizer, edits())
    config = LoaderConfig(row_length=96, rows_per_step=2, window_rows=2)
    batch_of = partial(pack_rows, row_length=96, pad_id=1, head_batch_mul=2)
    step = Loader([source], [1.0], batch_of, config, rank=2, world=3).next_step()
    (batch,) = step.batches
    assert batch.ids.shape == (1, 96)
    assert (batch.tokens, step.tokens, step.keys) == (0, 0, [])
