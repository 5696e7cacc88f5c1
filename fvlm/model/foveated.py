"""The foveated model: one visual token per frame, brought back by a query.

Sequence of one pass, causal: [m, v_1 .. v_T] with the mode token m (coarse or fine) and the visual
token v_t of frame t. The states at m, v_1 .. v_{T-1} predict latents Y_1 .. Y_T: the state that
predicts frame t has not seen frame t.

    coarse pass   q_t = q_static for every t
    fine pass     q_1 = q_init,  q_{t+1} = W_q h(v_t) with h from the pass before

`fine_iterations` K runs coarse -> fine_1 -> .. -> fine_K; inside a pass all frames run in parallel.
A caption may stand before m (condition), or after v_T to be predicted (caption), a question before
m and its answer after v_T (answer): `captions.py`.

A baseline with P pooled tokens a frame has [m, v_1^1 .. v_1^P, v_2^1 ..] and no query: the states
at m and at the last token of each frame predict. It has a coarse pass only.

Axes: B batch, T frames, S pixels, N tokens, D token width, H hidden width, C h w latent,
M caption tokens.
"""

from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaModel

from fvlm.clips.batch import Captions, Input
from fvlm.core.params import Params
from fvlm.encoders.dino import DinoEncoder
from fvlm.model.captions import PREDICTED, Prefix, Text, caption_losses
from fvlm.model.film_head import CHANNELS, FilmHead, Previous, ResidualHead
from fvlm.model.language import causal_states
from fvlm.model.query_attention import (
    DeepAttention,
    FrameCache,
    PooledTokens,
    QueryReads,
    QueryRole,
    ShallowAttention,
)

Mode = Literal["coarse", "fine"]
Head = Literal["film", "residual"]


class ModelParams(Params):
    """Section `model` of params.yaml."""

    llm: str
    llm_layers: int = Field(ge=0)
    query_layers: int = Field(ge=0)
    intermediate_tokens: bool
    query_role: QueryRole
    query_reads: QueryReads
    temperature: float = Field(gt=0)
    fine_iterations: int = Field(ge=1)
    head: Head = "film"
    head_channels: int = Field(ge=4, multiple_of=4)
    text: Text
    max_text_tokens: int = Field(ge=1)

    @field_validator("intermediate_tokens")
    @classmethod
    def _only_shallow(cls, value: bool, info: ValidationInfo) -> bool:
        k = info.data.get("query_layers", 0)
        if value and k > 0:
            raise ValueError(f"must be false with model.query_layers ({k}) > 0: it is for shallow")
        return value


@dataclass(frozen=True)
class PassOutput:
    """One pass over B clips of T frames.

    queries [B,T,D] that read the frames; attention [B,T,N] of each query over its frame's tokens;
    visual [B,T,H] tokens, or P pooled ones a frame [B,T*P,H]; predictor [B,T,H] states that predict
    Y_1 .. Y_T; next_queries [B,T,D] for the following pass, already shifted: q_init, W_q h(v_1) ..
    W_q h(v_{T-1}); caption [B,M,H] states that predict the caption's tokens, in a pass that was
    given one; mode: whose mode token stood in front.
    """

    queries: Tensor
    attention: Tensor
    visual: Tensor
    predictor: Tensor
    next_queries: Tensor
    caption: Tensor | None = None
    mode: Mode = "fine"


@dataclass(frozen=True)
class ClipCache:
    """What all passes over the same clips share: their frames, and captions before them."""

    frames: FrameCache
    prefix: Prefix | None

    def only_patches(self) -> "ClipCache":
        """The same clips with CLS and registers masked."""
        return replace(self, frames=self.frames.only_patches())


@dataclass(frozen=True)
class Prediction:
    """Predicted latents [B,T,C,h,w] of the coarse pass and of the last fine pass.

    caption_coarse, caption_fine: each clip's caption loss [B], of a model that predicts captions;
    rejected_coarse, rejected_fine: that of other text in its place, where there is some.
    """

    coarse: Tensor
    fine: Tensor
    caption_coarse: Tensor | None = None
    caption_fine: Tensor | None = None
    rejected_coarse: Tensor | None = None
    rejected_fine: Tensor | None = None


class FoveatedModel(nn.Module):
    """Language model, query attention and prediction head.

    `latent_shape` is (C,h,w). The query attention comes with its own blocks of the patch encoder.
    Tokens enter as the encode stage stored them, before these blocks; with an `encoder`, which
    computes just these tokens, frames enter instead. The whole patch encoder is frozen until
    `train_encoder` is called. `output` [V,H] predicts captions; None: tied to the embeddings.
    Without `fine_iterations` there is a coarse pass only, and it stands for the fine one, too.
    """

    def __init__(
        self,
        *,
        language: LlamaModel,
        attention: ShallowAttention | DeepAttention | PooledTokens,
        latent_shape: tuple[int, int, int],
        fine_iterations: int,
        encoder: DinoEncoder | None = None,
        head: Head = "film",
        head_channels: int = CHANNELS,
        text: Text = "none",
        output: nn.Linear | None = None,
    ) -> None:
        super().__init__()
        hidden, width = int(language.config.hidden_size), attention.width
        self.language, self.attention = language, attention
        self.encoder = encoder.requires_grad_(False) if encoder else None
        self.fine_iterations, self.text, self.output = fine_iterations, text, output
        # Standard deviation 1, not 0.02: a small query attends uniformly, and coarse equals fine.
        self.q_static = nn.Parameter(torch.randn(width))
        self.q_init = nn.Parameter(torch.randn(width))
        # No bias: it would drown the query and make all queries act alike.
        self.to_query = nn.Linear(hidden, width, bias=False)
        self.to_visual = nn.Linear(width, hidden)
        # Normalised per token: statistics of a batch would leak future frames and other clips.
        self.visual_norm = nn.RMSNorm(hidden, eps=1e-6)
        self.mode_tokens = nn.ParameterDict(
            {mode: nn.Parameter(torch.randn(hidden) * 0.02) for mode in ("coarse", "fine")}
        )
        self.y_init = nn.Parameter(torch.zeros(latent_shape))
        self.head = (
            ResidualHead(hidden, latent_shape, channels=head_channels)
            if head == "residual"
            else FilmHead(hidden, latent_shape[0], channels=head_channels)
        )
        if fine_iterations == 0:
            # Under several processes a weight that no loss reaches is an error.
            for unused in (self.q_init, self.mode_tokens["fine"], *self.to_query.parameters()):
                unused.requires_grad_(False)
            self.q_static.requires_grad_(not isinstance(attention, PooledTokens))

    @property
    def input(self) -> Input:
        """What `forward` takes: `features` (stored tokens) or `frames`."""
        return "frames" if self.encoder else "features"

    def train_encoder(self) -> None:
        """Let the patch encoder learn with the rest; only for a model that takes frames."""
        assert self.encoder is not None
        for name, part in self.named_children():
            if name in ("encoder", "attention"):
                for parameter_name, parameter in part.named_parameters():
                    # No frame is masked: under several processes an unused weight is an error.
                    parameter.requires_grad_("mask_token" not in parameter_name)

    def forward(
        self,
        inputs: Tensor,
        latents: Tensor,
        captions: Captions | None = None,
        rejected: Captions | None = None,
    ) -> Prediction:
        """Predictions of the coarse and of the last fine pass.

        inputs: tokens float [B,T,N,D], or frames uint8 [B,T,3,S,S] when there is an encoder;
        latents [B,T,C,h,w], any float type; captions when `text` is not none; rejected: other text
        behind the same video, and behind the same question in front of it.
        """
        cache = self.cache_clips(inputs, captions)
        passes = self.run_passes(cache, *inputs.shape[:2], captions=captions)
        previous = self.encode_previous(latents)
        predicted = [self.head(end.predictor, previous) for end in ends_of(passes)]
        said = [self.caption_losses(end, captions) for end in ends_of(passes)]
        others = [
            self.caption_losses(self.repeat_pass(cache, end, rejected), rejected)
            for end in ends_of(passes)
            if rejected
        ]
        return Prediction(
            coarse=predicted[0],
            fine=predicted[-1],
            caption_coarse=said[0],
            caption_fine=said[-1],
            rejected_coarse=others[0] if others else None,
            rejected_fine=others[-1] if others else None,
        )

    def cache_clips(self, inputs: Tensor, captions: Captions | None = None) -> ClipCache:
        """Keys and values of all B*T frames, and of captions before them; serves every pass.

        Arguments as of `forward`. Raises TypeError when tokens are given to a model that takes
        frames, or frames to one that takes tokens, or captions to one without text, or none to one
        with text.
        """
        if (inputs.dtype == torch.uint8) != (self.input == "frames"):
            raise TypeError(f"this model takes {self.input}, got {inputs.dtype} as inputs")
        if (captions is None) != (self.text == "none"):
            raise TypeError(f"model.text is {self.text}, got captions {captions}")
        frames = inputs.flatten(0, 1)
        tokens = self.encoder(frames, layer=len(self.encoder.layers)) if self.encoder else frames
        before = captions if self.text == "condition" else captions and captions.question
        return ClipCache(
            frames=self.attention.cache_frames(tokens, dtype=self.q_static.dtype),
            prefix=Prefix.read(self.language, before) if before else None,
        )

    def run_passes(
        self, cache: ClipCache, B: int, T: int, *, captions: Captions | None = None
    ) -> list[PassOutput]:
        """The coarse pass and then the fine passes, each fed with the queries of the one before.

        Text to be predicted stands in the first and the last pass, whose losses count.
        """
        K = self.fine_iterations
        predicted = captions if self.text in PREDICTED else None
        queries = self.static_queries(B, T)
        passes = [self.run_pass(cache, queries, mode="coarse", predicted=predicted)]
        for k in range(1, K + 1):
            queries, last = passes[-1].next_queries, predicted if k == K else None
            passes.append(self.run_pass(cache, queries, mode="fine", predicted=last))
        return passes

    def static_queries(self, B: int, T: int) -> Tensor:
        """q_static for every frame [B,T,D]."""
        return self.q_static.expand(B, T, -1)

    def run_pass(
        self,
        cache: ClipCache,
        queries: Tensor,
        *,
        mode: Mode,
        predicted: Captions | None = None,
        look: Tensor | None = None,
    ) -> PassOutput:
        """Read every frame with its query [B,T,D] and run the language model over the result.

        look [B,T,D]: deep queries whose attention takes the place of that of `queries`.
        """
        B, T, _ = queries.shape
        visual, attention = self.read_frames(cache.frames, queries, look=look)
        sequence = [self.mode_tokens[mode].expand(B, 1, -1), visual]
        if predicted:  # its last token is only a target
            sequence.append(self.language.get_input_embeddings()(predicted.ids[:, :-1]))
        states = self.run_language(torch.cat(sequence, dim=1), cache.prefix)
        q_init = self.q_init.expand(B, 1, -1)
        P = self.attention.tokens_per_frame
        ends = states[:, : T * P : P]  # at m, and at the last token of each frame but the last
        return PassOutput(
            queries=queries,
            attention=attention,
            visual=visual,
            predictor=ends,
            next_queries=torch.cat([q_init, self.to_query(ends[:, 1:]).to(q_init.dtype)], dim=1),
            caption=states[:, T * P :] if predicted else None,
            mode=mode,
        )

    def repeat_pass(self, cache: ClipCache, output: PassOutput, predicted: Captions) -> PassOutput:
        """The same pass, with other text to be predicted."""
        return self.run_pass(cache, output.queries, mode=output.mode, predicted=predicted)

    def run_language(self, sequence: Tensor, prefix: Prefix | None) -> Tensor:
        """States [B,S,H] of a sequence [B,S,H] after the captions of the prefix, causal."""
        if prefix is None:
            return causal_states(self.language, sequence)
        output = self.language(
            inputs_embeds=sequence,
            past_key_values=prefix.in_front(self.language),
            use_cache=True,
            **prefix.places(0, sequence.shape[1]),
        )
        states: Tensor = output.last_hidden_state
        return states

    def caption_losses(self, output: PassOutput, captions: Captions | None) -> Tensor | None:
        """Each clip's caption loss [B] in a pass that was given captions to predict."""
        if output.caption is None or captions is None:
            return None
        return caption_losses(output.caption, self.words, captions)

    @property
    def words(self) -> Tensor:
        """Weights [V,H] that turn a state into logits of the next token."""
        tied = cast(nn.Embedding, self.language.get_input_embeddings())
        return self.output.weight if self.output else tied.weight

    def read_frames(
        self, cache: FrameCache, queries: Tensor, *, look: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Queries [B,T,D] -> visual tokens [B,T,H], attention [B,T,N]; `look` as of `run_pass`.

        Pooled tokens are [B,T*P,H].
        """
        B, T, _ = queries.shape
        others = {} if look is None else {"look": look.flatten(0, 1)}
        found, attention = self.attention(queries.flatten(0, 1), cache, **others)
        # In float32: under autocast the projection is bfloat16, the norm's weight is not.
        visual = self.visual_norm(self.to_visual(found).float())
        return visual.reshape(B, -1, visual.shape[-1]), attention.unflatten(0, (B, T))

    def encode_previous(self, latents: Tensor) -> Previous:
        """What the head needs of [y_init, Y_1 .. Y_{T-1}]; shared by the passes."""
        B = latents.shape[0]
        y_init = self.y_init.expand(B, 1, -1, -1, -1)
        previous = torch.cat([y_init, latents[:, :-1].to(y_init.dtype)], dim=1)
        return self.head.encode_previous(previous)


def ends_of(passes: list[PassOutput]) -> list[PassOutput]:
    """The passes whose losses count: the first and the last."""
    return [passes[0], *passes[1:][-1:]]


def frame_losses(prediction: Tensor, latents: Tensor) -> Tensor:
    """Mean squared error of each frame, float32 [B,T]; latents [B,T,C,h,w]."""
    squared = F.mse_loss(prediction.float(), latents.float(), reduction="none")
    return squared.mean(dim=(2, 3, 4))
