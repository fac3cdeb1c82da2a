"""ImageTokenizer: pixels to image tokens and back.

Legend: B pictures, H W pixels, h w latents, N image tokens, D values per token.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from nextstep.kernels.linear import MULTIPLE
from nextstep.vae import kernel_maps
from nextstep.vae.autoencoder import Autoencoder, Decoder, Encoder
from nextstep.vae.config import AutoencoderConfig
from nextstep.vae.kernel_maps import KernelMaps
from nextstep.vae.latents import TOKEN_NORM_EPS, normalise_latents, patchify, unpatchify


class ImageTokenizer(nn.Module):
    """The frozen autoencoder with its normalisation.

    `encode` gives latents ready for the transformer, `decode` takes them as they are: nothing is
    un-normalised, because the decoder was trained on normalised latents.

    In fp32 on a CPU that has kernels both go through them: the same bytes on every processor.
    """

    def __init__(self, config: AutoencoderConfig, autoencoder: Autoencoder | None = None) -> None:
        super().__init__()
        self.config = config
        self.autoencoder = autoencoder if autoencoder is not None else Autoencoder(config)
        self.requires_grad_(False)
        self.eval()
        self._maps: dict[str, KernelMaps] = {}

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, dtype: torch.dtype | None = None, device: str = "cpu"
    ) -> ImageTokenizer:
        """Read a tokenizer folder of either layout; see `vae_files.load_image_tokenizer`."""
        from nextstep.vae.files import load_image_tokenizer

        return load_image_tokenizer(Path(folder), dtype, device)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.autoencoder.decoder.conv_in.weight.dtype

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return self.autoencoder.decoder.conv_in.weight.device

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of image tokens of a picture.

        Raises:
            ValueError: when a side is not a positive multiple of a token's pixels.
        """
        side = self.config.token_pixels
        if height < side or width < side or height % side or width % side:
            raise ValueError(
                f"height and width must be positive multiples of {side}, not {height}x{width}"
            )
        return height // side, width // side

    @torch.inference_mode()
    def encode(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Pixels [B, 3, H, W] in [-1, 1] -> normalised latents [B, C, h, w].

        Args:
            pixels: sides are multiples of a token's pixels.
            generator: of the sample that a tokenizer which is not deterministic takes; without
                one it gives the mean too, so that nothing depends on global state.
        """
        self.grid(pixels.shape[-2], pixels.shape[-1])
        moments = self._through("encoder", pixels)
        mean, logvar = moments.chunk(2, dim=1)
        if self.config.token_norm:
            mean = self._normalised(mean)
        if not self.config.deterministic and generator is not None:
            std = torch.exp(0.5 * logvar.clamp(-30, 20))
            noise = torch.randn(mean.shape, generator=generator, dtype=torch.float32)
            mean = mean + std * noise.to(mean)
        return (mean - self.config.shift_factor) * self.config.scaling_factor

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] -> pixels [B, 3, H, W], fp32, clamped to [-1, 1]."""
        latents = latents / self.config.scaling_factor + self.config.shift_factor
        pixels = self._through("decoder", latents)
        return pixels.float().clamp(-1, 1)

    def _through(self, name: str, x: Tensor) -> Tensor:
        """The encoder or decoder of x, through the kernels where they know it."""
        network = getattr(self.autoencoder, name)
        x = x.to(self.device, self.dtype)
        if not self.uses_kernels or not isinstance(network, Encoder | Decoder):
            made: Tensor = network(x)
            return made
        if name not in self._maps or not self._maps[name].stands_for(network):
            self._maps[name] = KernelMaps(network)
        return self._maps[name](x)

    @property
    def uses_kernels(self) -> bool:
        """Whether the kernels compute it, so that its bytes are those of every processor."""
        weight = next(self.autoencoder.parameters()).data
        is_wide = self.dtype == torch.float32 and self.device.type == "cpu"
        # The tensors of a dry run are of another type and hold no numbers.
        return is_wide and type(weight) is Tensor and kernel_maps.fits(self.config)

    def _normalised(self, latents: Tensor) -> Tensor:
        """Token norm of latents [B, C, h, w]."""
        patch = self.config.patch
        if not self.uses_kernels or self.config.token_size % MULTIPLE:
            return normalise_latents(latents, patch)
        grid = latents.shape[-2] // patch, latents.shape[-1] // patch
        tokens = kernel_maps.normalise_tokens(patchify(latents, patch), TOKEN_NORM_EPS)
        return unpatchify(tokens, grid, patch)

    def encode_tokens(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] -> image tokens [B, N, D]."""
        return patchify(self.encode(pixels), self.config.patch)

    def decode_tokens(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Image tokens [B, N, D] of one grid -> pixels [B, 3, H, W].

        On a CPU one by one: what a decoder keeps of one picture stays nearer to its caches.
        """
        latents = unpatchify(tokens, grid, self.config.patch)
        if latents.device.type != "cpu" or len(latents) < 2:
            return self.decode(latents)
        return torch.cat([self.decode(own) for own in latents.split(1)])
