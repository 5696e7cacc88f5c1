"""A starting point for `train.py`: the network begins as a linear block transform.

Drawn at random, an `AutoencoderKL` needs most of an hour on one core to learn what a linear code
knows at once. Three measures give it that knowledge:

* Anchors. Group norm divides by the frame's own contrast, which hides absolute levels. The last
  channel of every normalised tensor is therefore a constant, the root of the channel count, which
  dominates mean and variance: the norm starts as a nearly fixed affine map.
* The skip path carries a Haar pyramid in the encoder (each stride-2 convolution splits the
  low-pass RGB into 12 sub-bands and averages the rest) and bilinear interpolation in the decoder.
  The residual branches start at a tenth of their usual output.
* Both final convolutions are fitted by least squares: to the leading principal components of 8x8
  blocks in the encoder, to the frames in the decoder.
"""

import math

import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn.functional import conv2d

BLOCK_PX = 8
NORM_SHIFT = 4.0  # silu(x + 4) is almost linear for |x| < 3
QUIET = 0.1  # share of the usual random weights that is kept


def quieten(conv: nn.Conv2d, bias: float = 0.0) -> None:
    """Scale random weights down and cut the last output channel off, whose bias becomes `bias`."""
    assert conv.bias is not None
    conv.weight.mul_(QUIET)
    conv.weight[-1] = 0.0
    conv.bias.zero_()
    conv.bias[-1] = bias


def carry(conv: nn.Conv2d, channels: int, taps: Tensor) -> None:
    """Add `taps` (k, k) from each of the first `channels` channels to its namesake."""
    for channel in range(channels):
        conv.weight[channel, channel] += taps


def root(channels: int) -> float:
    """The anchor's value: gives a norm over otherwise small channels a unit deviation."""
    return math.sqrt(channels)


def start_resnets(module: nn.Module) -> None:
    """Quiet residual branches with anchors; shortcuts that copy channels."""
    for block in module.modules():
        if not isinstance(block, ResnetBlock2D):
            continue
        block.conv1.weight[-1] = 0.0
        block.conv1.bias[-1] = root(block.conv1.out_channels)
        quieten(block.conv2)
        if block.conv_shortcut is not None:
            shortcut = block.conv_shortcut
            quieten(shortcut, root(shortcut.out_channels))
            kept = min(shortcut.in_channels, shortcut.out_channels) - 1
            carry(shortcut, kept, torch.ones(1, 1))


def start_haar(conv: nn.Conv2d, used: int) -> int:
    """Haar analysis of channels 0-2, averages of channels 3 to `used`; returns the new `used`."""
    quieten(conv, root(conv.out_channels))
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    row = 0
    for band in (0, 1, 2, 3):  # low-pass, horizontal, vertical, diagonal detail
        vertical, horizontal = signs[band // 2], signs[band % 2]
        for colour in range(3):
            conv.weight[row, colour, :2, :2] += torch.outer(vertical, horizontal) / 4
            row += 1
    for channel in range(3, used):
        if row < conv.out_channels - 1:
            conv.weight[row, channel, :2, :2] += 0.25
            row += 1
    return row


def block_components(frames: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Leading principal components of 8x8 RGB blocks: mean (192,), basis (192, count)."""
    blocks = torch.nn.functional.unfold(frames, BLOCK_PX, stride=BLOCK_PX)
    blocks = blocks.transpose(1, 2).reshape(-1, 3 * BLOCK_PX**2)
    mean = blocks.mean(0)
    return mean, torch.linalg.eigh(torch.cov((blocks - mean).T))[1].flip(1)[:, :count]


def fit_last_conv(conv: nn.Conv2d, inputs: Tensor, targets: Tensor) -> None:
    """Set the centre taps of the first output channels to the least-squares map onto `targets`."""
    x, y = inputs.movedim(1, -1).flatten(0, 2), targets.movedim(1, -1).flatten(0, 2)
    x_mean, y_mean = x.mean(0), y.mean(0)
    xc = x - x_mean
    ridge = 1e-4 * xc.pow(2).sum() / xc.shape[1] * torch.eye(xc.shape[1])
    weight = torch.linalg.solve(xc.T @ xc + ridge, xc.T @ (y - y_mean)).T
    rows = len(weight)
    assert conv.bias is not None
    conv.weight.zero_()
    conv.bias.zero_()
    conv.weight[:rows, :, 1, 1] = weight
    conv.bias[:rows] = y_mean - weight @ x_mean


def features(module: nn.Module, inputs: Tensor) -> Tensor:
    """What an encoder's or decoder's `conv_out` receives."""
    caught: list[Tensor] = []
    hook = module.get_submodule("conv_out").register_forward_pre_hook(
        lambda _, args: caught.append(args[0])
    )
    for part in inputs.split(32):
        module(part)
    hook.remove()
    return torch.cat(caught)


@torch.no_grad()
def start_linear(vae: AutoencoderKL, frames: Tensor) -> None:
    """Turn a fresh model into a linear code fitted to `frames` (B, 3, H, W) in [-1, 1]."""
    encoder, decoder, latent_channels = vae.encoder, vae.decoder, vae.config.latent_channels
    centre = torch.zeros(3, 3)
    centre[1, 1] = 1.0
    bilinear = torch.outer(*[torch.tensor([0.25, 0.5, 0.25])] * 2)
    for module in (encoder, decoder):
        start_resnets(module)
        quieten(module.conv_in, root(module.conv_in.out_channels))
        module.conv_norm_out.bias.fill_(NORM_SHIFT)
    carry(encoder.conv_in, 3, centre)
    used = 3
    for block in encoder.down_blocks:
        for sampler in block.downsamplers or ():
            used = start_haar(sampler.conv, used)
    carry(decoder.conv_in, latent_channels, centre)
    for block in decoder.up_blocks:
        for sampler in block.upsamplers or ():
            quieten(sampler.conv, root(sampler.conv.out_channels))
            carry(sampler.conv, sampler.conv.out_channels - 1, bilinear)
    for conv, channels in ((vae.quant_conv, 2 * latent_channels), (vae.post_quant_conv, 4)):
        conv.weight.zero_()
        conv.bias.zero_()
        carry(conv, channels, torch.ones(1, 1))
    mean, basis = block_components(frames, latent_channels)
    kernel = basis.T.reshape(latent_channels, 3, BLOCK_PX, BLOCK_PX)
    codes = conv2d(frames, kernel, stride=BLOCK_PX) - (mean @ basis)[:, None, None]
    codes = codes / codes.std((0, 2, 3), keepdim=True)
    fit_last_conv(encoder.conv_out, features(encoder, frames), codes)
    encoder.conv_out.bias[latent_channels:] = -8.0  # log variance: little noise
    latents = vae.encode(frames).latent_dist.mean
    fit_last_conv(decoder.conv_out, features(decoder, latents), frames)
