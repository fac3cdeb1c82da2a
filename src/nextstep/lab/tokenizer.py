"""`nextstep lab tokenizer`: does an image tokenizer that reconstructs better generate worse?

An image tokenizer with 4 or 16 latent channels, each trained with three amounts of noise on its
latents, and a generator on each. What an arm's latents look like is measured beside.

Legend: B pictures, N image tokens, D values per token, C latent channels, h w latents.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from nextstep.data.documents import derived_seed
from nextstep.evaluate.reconstruction import compared
from nextstep.evaluate.world.run import Plan
from nextstep.image.pictures import to_pixels
from nextstep.lab.paradigms.answering import true_picture
from nextstep.lab.recipe_study import RecipeStudy, items_of, spent
from nextstep.lab.report import colours, with_intervals
from nextstep.lab.study import (
    Arm,
    Claim,
    Conclusion,
    MeasuredUnit,
    Plot,
    Scale,
    StudyCost,
    StudyResults,
    StudyUnit,
    Table,
    Verdict,
)
from nextstep.lab.world_scores import EDITION, by_task, score_world
from nextstep.pipeline import NextStepPipeline
from nextstep.recipe.load import load_recipe, recipe_file
from nextstep.recipe.run import MODEL, run_recipe
from nextstep.recipe.shapes import autoencoder_config
from nextstep.recipe.tokenizer_parts import tokenizer_stage
from nextstep.train.stages.tokenizer import PictureBatch
from nextstep.vae.autoencoder import Autoencoder
from nextstep.vae.files import load_image_tokenizer
from nextstep.vae.latents import patchify
from nextstep.vae.perceptual import FeatureNet
from nextstep.vae.tokenizer import ImageTokenizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nextstep.recipe.schema import Recipe

TOKENIZER, GENERATOR = "tokenizer", "generator"
"""Folders of the two runs inside a unit's."""
CHANNELS, NOISE = (4, 16), (0.0, 0.3, 0.5)
DISTURBED = 0.4
"""Standard deviation of the noise on latents under which decoding is measured; latents have 1."""
BINS = np.linspace(-4, 4, 41)
TINY = (
    "steps=2", "tokenizer.crops.size=32", "tokenizer.crops.batch=2", "schedule.warmup=1",
    "schedule.decay=1", "ema=0.5", "precision=fp32", "logging.every=1",
)  # fmt: skip
STEPS = ("steps=1600", "schedule.decay=400")
"""Of the generator: fewer than the ground has, since a unit trains two networks."""


@dataclass(frozen=True)
class _Way:
    """Channels of the latents, and the largest noise on them in training."""

    channels: int
    noise: float

    @property
    def name(self) -> str:
        return f"d{self.channels}-noise-{self.noise:g}"


WAYS = tuple(_Way(channels, noise) for channels in CHANNELS for noise in NOISE)
DECIDING = _Way(4, 0.0), _Way(16, 0.0), _Way(16, 0.5)
"""The arms that the verdict hangs on; a tiny run has no others."""


def _ways(scale: Scale) -> tuple[_Way, ...]:
    return DECIDING if scale.tiny else WAYS


class Tokenizers(RecipeStudy):
    """`nextstep lab tokenizer`."""

    name: ClassVar[str] = "tokenizer"
    title: ClassVar[str] = "Reconstruction against generation"
    claim: ClassVar[Claim] = Claim(
        "An image tokenizer that reconstructs better can generate worse: more latent channels help "
        "reconstruction and hurt the generator, unless the tokenizer is trained with noise on its "
        "latents.",
        "NextStep-1, arXiv 2508.10711, section 5.2 and figure 6",
        "Pictures of 256 pixels with fine detail, a tokenizer trained to its end, and more levels "
        "of noise; and guidance chosen for each tokenizer.",
    )
    base: ClassVar[str] = "lab-paradigms"
    tasks: ClassVar[tuple[str, ...]] = ("single", "two_objects")

    def arms(self, scale: Scale) -> Sequence[Arm]:
        """Channels by noise."""
        length = () if scale.tiny else STEPS
        return [
            Arm(way.name, f"{way.channels} channels, noise {way.noise:g}",
                (f"model.overrides.latent_channels={way.channels}", *length))
            for way in _ways(scale)
        ]  # fmt: skip

    def tokenizer_recipe(self, arm: Arm, scale: Scale, seed: int = 0) -> Recipe:
        """The recipe of an arm's image tokenizer."""
        way = _way(arm)
        changes = [f"tokenizer.channels={way.channels}", f"tokenizer.gamma={way.noise}"]
        tiny = TINY if scale.tiny else ()
        return load_recipe(recipe_file("lab-tokenizer"), [*changes, *tiny, f"seed={seed}"])

    def cost(self, arm: Arm, scale: Scale) -> StudyCost:
        """Of the generator, with the tokenizer's operations and parameters."""
        generator, recipe = super().cost(arm, scale), self.tokenizer_recipe(arm, scale)
        config, options = autoencoder_config(recipe), recipe.tokenizer
        assert options is not None
        stage = tokenizer_stage(recipe, config)
        network = Autoencoder(config)
        stage.trainee(network)
        side = options.crops.size
        batch = stage.prepare(PictureBatch(torch.zeros(1, 3, side, side), (0,)), "cpu")
        return replace(
            generator,
            flops=generator.flops + stage.flops(batch) * options.crops.batch * recipe.steps,
            parameters=generator.parameters + sum(p.numel() for p in network.parameters()),
        )

    def train(self, unit: StudyUnit) -> bool:
        """Train the image tokenizer, then the generator on it; or go on with either."""
        where = f"lab {self.name}, {unit.arm.name}"
        first = self.tokenizer_recipe(unit.arm, unit.scale, unit.seed)
        if not run_recipe(first, unit.run / TOKENIZER, where=where).finished:
            return False
        recipe = self.recipe(unit.arm, unit.scale, unit.seed)
        recipe = recipe.model_copy(update={"image_tokenizer": str(unit.run / TOKENIZER / MODEL)})
        return run_recipe(recipe, unit.run / GENERATOR, where=where).finished

    def measure(self, unit: StudyUnit) -> MeasuredUnit:
        """Reconstruction clean and disturbed, statistics of latents, score of the generator."""
        tokenizer = load_image_tokenizer(unit.run / TOKENIZER / MODEL, torch.float32)
        pictures = self._pictures(unit.scale)
        items = reconstructions(tokenizer, pictures)
        values, tables = statistics_of(tokenizer, pictures)
        pipeline = NextStepPipeline.from_pretrained(str(unit.run / GENERATOR / MODEL))
        scores = score_world(
            pipeline, unit.folder / "drawing", _tasks(unit.scale), items_of(unit.scale)
        )
        took = [spent(unit.run / name / "log.jsonl") for name in (TOKENIZER, GENERATOR)]
        total = {name: took[0][name] + took[1][name] for name in took[1]}
        return MeasuredUnit(values, {**items, **by_task(scores)}, tables, total)

    def _pictures(self, scale: Scale) -> dict[str, Tensor]:
        """Key -> pixels [1, 3, H, W] of the true pictures of the questions."""
        size = max(self.recipe(self.arms(scale)[0], scale).data.areas)
        plan = Plan.of(_tasks(scale), ["seen"], items_of(scale), size=size, edition=EDITION)
        return {
            question.key: to_pixels([true_picture(question, size)])
            for task, split in plan.pairs
            for question in plan.questions(task, split)
        }

    def conclude(self, results: StudyResults) -> Conclusion:
        """Whether more channels reconstruct better and generate worse, and noise mends it."""
        few, many, noisy = (way.name for way in DECIDING)
        sharper = results.difference(many, few, "psnr")
        worse = results.difference(many, few, "score")
        mended = results.difference(noisy, many, "score")
        verdict: Verdict = "not reproduced"
        if sharper.low > 0 and worse.high < 0 and mended.low > 0:
            verdict = "reproduced"
        elif worse.low > 0 or mended.high < 0:
            verdict = "contradicted"
        reason = (
            f"16 channels less 4, both without noise: PSNR {sharper:+.1f} dB, score "
            f"{worse:+.3f}. 16 channels, noise 0.5 less none: score {mended:+.3f}. All "
            "three must be clear in the claimed direction."
        )
        return Conclusion(
            verdict, reason, [_table(results)], [_dilemma(results), _spectra(results)]
        )


def _tasks(scale: Scale) -> Sequence[str]:
    return Tokenizers.tasks[:1] if scale.tiny else Tokenizers.tasks


def _way(arm: Arm) -> _Way:
    return next(way for way in WAYS if way.name == arm.name)


def reconstructions(
    tokenizer: ImageTokenizer, pictures: Mapping[str, Tensor]
) -> dict[str, dict[str, float]]:
    """PSNR, SSIM and feature distance of every picture, clean and with noise on its latents.

    Args:
        tokenizer: the image tokenizer, fp32.
        pictures: key -> pixels [1, 3, H, W]; the noise of a picture hangs on its key.
    """
    features, found = FeatureNet.from_package(), dict[str, dict[str, float]]()
    for key, pixels in pictures.items():
        latents = tokenizer.encode(pixels).clone()
        generator = torch.Generator().manual_seed(derived_seed("lab latent noise", key))
        noise = torch.randn(latents.shape, generator=generator)
        for suffix, given in (("", latents), (" disturbed", latents + DISTURBED * noise)):
            told = compared(tokenizer.decode(given).clone(), pixels, features)
            for name, value in zip(("psnr", "ssim", "feature distance"), told, strict=True):
                found.setdefault(name + suffix, {})[key] = round(value, 6)
    return found


def statistics_of(
    tokenizer: ImageTokenizer, pictures: Mapping[str, Tensor]
) -> tuple[dict[str, float], dict[str, list[dict[str, Any]]]]:
    """What latents look like: effective rank, moments and histogram of channels, spectrum.

    Returns:
        Figures; and tables `channels`, `histograms` and `spectrum`.
    """
    latents = torch.cat([tokenizer.encode(pixels).clone() for pixels in pictures.values()])
    by_channel = latents.transpose(0, 1).flatten(1).double().numpy()  # [C, B*h*w]
    channels, histograms = [], []
    for number, values in enumerate(by_channel):
        mean, std = values.mean(), values.std()
        scaled = (values - mean) / max(std, 1e-12)
        channels.append({
            "channel": number, "mean": float(mean), "std": float(std),
            "skewness": float((scaled**3).mean()),
            "excess kurtosis": float((scaled**4).mean() - 3),
        })  # fmt: skip
        counts, _ = np.histogram(values, BINS)
        histograms += [
            {"channel": number, "from": round(float(low), 3), "count": int(count)}
            for low, count in zip(BINS[:-1], counts, strict=True)
        ]
    tokens = patchify(latents, tokenizer.config.patch).flatten(0, 1)  # [B*N, D]
    shares = variance_shares(tokens)
    spectrum = [{"component": n, "share": float(share)} for n, share in enumerate(shares, 1)]
    rank = effective_rank(shares)
    figures = {"effective rank": rank, "effective rank per value": rank / len(shares)}
    return figures, {"channels": channels, "histograms": histograms, "spectrum": spectrum}


def variance_shares(tokens: Tensor) -> np.ndarray:
    """Shares of the variance along the principal components of tokens [M, D], largest first."""
    covariance = torch.cov(tokens.double().T)
    values = torch.linalg.eigvalsh(covariance).clamp(min=0).flip(0).numpy()
    found: np.ndarray = values / values.sum()
    return found


def effective_rank(shares: np.ndarray) -> float:
    """exp of the entropy of the variance's shares (Roy and Vetterli 2007)."""
    kept = shares[shares > 0]
    return math.exp(-float((kept * np.log(kept)).sum()))


def _table(results: StudyResults) -> Table:
    rows = []
    for arm in results.arms:
        score = results.estimate(arm.name, "score")
        cells = [
            f"{results.estimate(arm.name, name).value:.{digits}f}"
            for name, digits in (
                ("psnr", 1), ("ssim", 3), ("feature distance", 3), ("psnr disturbed", 1),
                ("ssim disturbed", 3), ("feature distance disturbed", 3),
            )
        ]  # fmt: skip
        rank = statistics.fmean(results.values(arm.name, "effective rank"))
        rows.append((arm.title, *cells, f"{rank:.1f}", f"{score:.2f}"))
    head = (
        "tokenizer", "PSNR (dB)", "SSIM", "feature distance", f"PSNR, noise {DISTURBED}",
        f"SSIM, noise {DISTURBED}", f"feature distance, noise {DISTURBED}", "effective rank",
        "generator's score",
    )  # fmt: skip
    return Table("Reconstruction, latents and generation", head, rows)


def _dilemma(results: StudyResults) -> Plot:
    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for channels, colour in zip(CHANNELS, colours(len(CHANNELS)), strict=True):
            ways = [way for way in _ways(results.scale) if way.channels == channels]
            psnr = [results.estimate(way.name, "psnr").value for way in ways]
            scores = [results.estimate(way.name, "score") for way in ways]
            with_intervals(axes, psnr, scores, f"{channels} channels", colour)
            for way, x, score in zip(ways, psnr, scores, strict=True):
                axes.annotate(f" noise {way.noise:g}", (x, score.value), fontsize=8)
        axes.set_xlabel("PSNR of reconstruction (dB)")
        axes.set_ylabel("drawing score of the generator")
        axes.legend()

    return Plot("dilemma", "Score of the generator against reconstruction.", paint)


def _spectra(results: StudyResults) -> Plot:
    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        ways = _ways(results.scale)
        for way, colour in zip(ways, colours(len(ways)), strict=True):
            rows = results.of(way.name)[0].tables["spectrum"]
            shares = np.cumsum([row["share"] for row in rows])
            axes.plot(np.arange(1, len(shares) + 1), shares, color=colour, label=way.name)
        axes.set_xscale("log")
        axes.set_xlabel("principal components of a token's values")
        axes.set_ylabel("share of the variance")
        axes.legend(fontsize=8)

    return Plot("spectrum", "Variance held by the first principal components, seed 0.", paint)
