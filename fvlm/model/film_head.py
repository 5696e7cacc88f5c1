"""Prediction head: the language model's state modulates the previous latent (FiLM).

Source: Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer" (AAAI 2018).

Axes: B batch, T frames, H hidden width, C h w latent.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

CHANNELS = 256  # where the modulation acts; the convolutions before it have 1/4 and 1/2 of them
FILM_HIDDEN = 512


class FilmHead(nn.Module):
    """Predicts the latent of frame t from a hidden state that has not seen it and latent t - 1.

        feat = convs(previous latent);  (gamma, beta) = mlp(h)
        prediction = convs(gamma * feat + beta)

    Not residual. 1,300,612 parameters at H = 576, C = 4 and 256 `channels`, a multiple of 4.
    """

    def __init__(self, hidden: int, latent_channels: int, *, channels: int = CHANNELS) -> None:
        super().__init__()
        self.film = nn.Sequential(
            nn.Linear(hidden, FILM_HIDDEN), nn.GELU(), nn.Linear(FILM_HIDDEN, 2 * channels)
        )
        widths = (channels // 4, channels // 2, channels)
        self.before = _convolutions((latent_channels, *widths))
        self.after = _convolutions((*reversed(widths), latent_channels))

    def encode_previous(self, previous: Tensor) -> Tensor:
        """Features of the previous latents [B,T,C,h,w] -> [B*T,channels,h,w].

        They do not depend on the hidden state, so that one call serves the coarse and fine passes.
        """
        flat = previous.flatten(0, 1)
        features: Tensor = self.before(flat.contiguous(memory_format=torch.channels_last))
        return features

    def forward(self, hidden: Tensor, features: Tensor) -> Tensor:
        """Hidden states [B,T,H] and `encode_previous(...)` -> predicted latents [B,T,C,h,w]."""
        B, T, _ = hidden.shape
        gamma, beta = self.film(hidden).flatten(0, 1)[:, :, None, None].chunk(2, dim=1)
        prediction: Tensor = self.after(gamma * features + beta)
        return prediction.reshape(B, T, *prediction.shape[1:])


def _convolutions(channels: tuple[int, ...]) -> nn.Sequential:
    """3x3 convolutions with GELU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(channels):
        layers += [nn.Conv2d(inputs, outputs, kernel_size=3, padding=1), nn.GELU()]
    return nn.Sequential(*layers[:-1])
