"""The training step as it was before: the plain way to compute the same losses.

For every frame of its own one query and, from frames, one encoder forward; the language model with
its output head, so that logits [B,1+T,V] stand in memory after every pass; eager attention; the
head once more from the start for every prediction; AdamW weight by weight. All float32.

Axes: B batch, T frames, N tokens, D token width, H hidden width, C h w latent, V vocabulary.
"""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from fvlm.model.foveated import FoveatedModel


class ReferenceModel(nn.Module):
    """A copy of a foveated model with shallow queries that computes in the plain way."""

    def __init__(self, model: FoveatedModel, vocabulary: int) -> None:
        super().__init__()
        parts = copy.deepcopy(model)
        config = parts.language.config.to_dict() | {"vocab_size": vocabulary}
        self.language = LlamaForCausalLM._from_config(
            LlamaConfig(**config), attn_implementation="eager"
        )
        self.language.model.load_state_dict(parts.language.state_dict(), strict=False)
        self.model = parts
        del parts.language

    def forward(self, inputs: Tensor, latents: Tensor) -> dict[str, Tensor]:
        """Tokens [B,T,N,D] or frames [B,T,3,S,S], and latents [B,T,C,h,w] -> scalar losses."""
        T, model = inputs.shape[1], self.model
        caches = [self._tokens(inputs[:, t]) for t in range(T)]
        queries = [model.q_static.expand(inputs.shape[0], -1)] * T
        predictor, states = self._run_pass(caches, queries, "coarse")
        loss_coarse = F.mse_loss(self._predict(predictor, latents), latents.float())
        for _ in range(model.fine_iterations):
            later = [model.to_query(states[:, t]) for t in range(T - 1)]
            queries = [model.q_init.expand(inputs.shape[0], -1), *later]
            predictor, states = self._run_pass(caches, queries, "fine")
        loss_fine = F.mse_loss(self._predict(predictor, latents), latents.float())
        return {
            "loss": loss_fine + loss_coarse,
            "loss_coarse": loss_coarse,
            "loss_fine": loss_fine,
        }

    def _tokens(self, inputs: Tensor) -> Tensor:
        """The tokens [B,N,D] of one frame of every clip."""
        encoder = self.model.encoder
        if encoder is None:
            return inputs.float()
        tokens: Tensor = encoder(inputs, layer=len(encoder.layers))
        return tokens

    def _run_pass(
        self, caches: list[Tensor], queries: list[Tensor], mode: str
    ) -> tuple[Tensor, Tensor]:
        """States [B,T,H] that predict each frame, and those [B,T,H] of each frame's token."""
        found = []
        for query, tokens in zip(queries, caches, strict=True):
            logits = torch.bmm(query[:, None], tokens.transpose(1, 2))
            weights = torch.softmax(logits / math.sqrt(tokens.shape[-1]), dim=-1)
            read = self.model.to_visual(torch.bmm(weights, tokens)[:, 0])
            found.append(self.model.visual_norm(read))
        mode_token = self.model.mode_tokens[mode].expand(found[0].shape[0], -1)
        sequence = torch.stack([mode_token, *found], dim=1)
        output = self.language(inputs_embeds=sequence, output_hidden_states=True, use_cache=False)
        states = output.hidden_states[-1]
        return states[:, :-1], states[:, 1:]

    def _predict(self, states: Tensor, latents: Tensor) -> Tensor:
        first = self.model.y_init.expand(latents.shape[0], 1, -1, -1, -1)
        previous = torch.cat([first, latents[:, :-1].float()], dim=1).flatten(0, 1)
        gamma, beta = self.model.head.film(states).flatten(0, 1)[:, :, None, None].chunk(2, dim=1)
        predicted: Tensor = self.model.head.after(gamma * self.model.head.before(previous) + beta)
        return predicted.reshape(latents.shape)


def reference_step(
    model: ReferenceModel,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    latents: Tensor,
    *,
    max_grad_norm: float,
) -> dict[str, float]:
    """One optimizer step; the losses before it."""
    optimizer.zero_grad()
    losses = model(inputs, latents)
    losses["loss"].backward()
    nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    optimizer.step()
    return {name: value.item() for name, value in losses.items()}
