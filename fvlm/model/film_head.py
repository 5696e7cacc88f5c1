"""Prediction head: the language model's state modulates the previous latent (FiLM).

Source: Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer" (AAAI 2018).

Axes: B batch, T frames, H hidden width, C h w latent.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

CHANNELS = 256  # where the modulation acts; the convolutions before it have 1/4 and 1/2 of them
FILM_HIDDEN = 512


class Previous(NamedTuple):
    """What predictions are made from besides the hidden state; of the latents [B*T,C,h,w] before
    each frame, their features [B*T,channels,h,w].
    """

    latents: Tensor
    features: Tensor


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

    def encode_previous(self, previous: Tensor) -> Previous:
        """What predictions need of the previous latents [B,T,C,h,w].

        It does not depend on the hidden state, so that one call serves the coarse and fine passes.
        """
        flat = previous.flatten(0, 1)
        return Previous(flat, self.before(flat.contiguous(memory_format=torch.channels_last)))

    def forward(self, hidden: Tensor, previous: Previous) -> Tensor:
        """Hidden states [B,T,H] and `encode_previous(...)` -> predicted latents [B,T,C,h,w]."""
        B, T, _ = hidden.shape
        gamma, beta = self.film(hidden).flatten(0, 1)[:, :, None, None].chunk(2, dim=1)
        prediction: Tensor = self.after(gamma * previous.features + beta)
        return prediction.reshape(B, T, *prediction.shape[1:])


class ResidualHead(FilmHead):
    """Adds what a `FilmHead` computes to AR(1), which it starts as: the last convolution is zero.

        prediction = mean + gain * (previous latent - mean) + convs(gamma * feat + beta)

    mean [C,h,w] and gain [1] are learned; a training starts them at the mean of its clips' latents
    and at the coefficient of least squares.
    """

    def __init__(
        self, hidden: int, latent_shape: tuple[int, int, int], *, channels: int = CHANNELS
    ) -> None:
        super().__init__(hidden, latent_shape[0], channels=channels)
        self.mean = nn.Parameter(torch.zeros(latent_shape))
        self.gain = nn.Parameter(torch.ones(1))
        for parameter in self.after[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, hidden: Tensor, previous: Previous) -> Tensor:
        """As of `FilmHead`; the latents' height and width are those of `mean`."""
        change = super().forward(hidden, previous)
        decayed = self.mean + self.gain * (previous.latents - self.mean)
        return decayed.reshape_as(change) + change


def _convolutions(channels: tuple[int, ...]) -> nn.Sequential:
    """3x3 convolutions with GELU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(channels):
        layers += [nn.Conv2d(inputs, outputs, kernel_size=3, padding=1), nn.GELU()]
    return nn.Sequential(*layers[:-1])
