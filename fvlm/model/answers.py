"""Answers of a trained model to one question: greedy, or the likelier of given options."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fvlm.clips.batch import Captions
from fvlm.clips.tokenizer import AnswerTokenizer
from fvlm.model.foveated import ClipCache, FoveatedModel, PassOutput

MOST = 16  # tokens of a greedy answer


@dataclass(frozen=True)
class Answer:
    """text: what was said; probability: of the whole of it with its end, or among the options."""

    text: str
    probability: float


@torch.inference_mode()
def answer_greedily(
    model: FoveatedModel,
    tokenizer: AnswerTokenizer,
    cache: ClipCache,
    output: PassOutput,
    question: str,
) -> Answer:
    """The likeliest token each time, in a pass over one clip, to the end or MOST tokens."""
    asked = tokenizer([question], [None])
    ids = asked.ids[:, : int(asked.mask.sum())].to(output.queries.device)
    said, log_probability = list[int](), 0.0
    while len(said) < MOST and tokenizer.eos not in said:
        target = torch.zeros_like(output.queries[:, :1, 0], dtype=torch.int64)  # not read
        behind = torch.cat([ids, torch.tensor([said], dtype=torch.int64).to(ids), target], dim=1)
        captions = Captions(behind, torch.ones_like(behind, dtype=torch.bool))
        states = model.repeat_pass(cache, output, captions).caption
        assert states is not None
        likely = torch.log_softmax(states[0, -1].float() @ model.words.float().T, dim=0)
        said.append(int(likely.argmax()))
        log_probability += float(likely.max())
    text = tokenizer.tokenizer.decode([token for token in said if token != tokenizer.eos])
    return Answer(text.strip(), float(torch.tensor(log_probability).exp()))


@torch.inference_mode()
def choose_option(
    model: FoveatedModel,
    tokenizer: AnswerTokenizer,
    cache: ClipCache,
    output: PassOutput,
    question: str,
    options: Sequence[str],
) -> Answer:
    """The option of the highest mean log-probability over its tokens and its end, in a pass over
    one clip; its share is that of a softmax over these means.
    """
    scores = torch.cat(
        [-losses_of(model, cache, output, tokenizer([question], [option])) for option in options]
    )
    shares = torch.softmax(scores.float(), dim=0)
    return Answer(options[int(shares.argmax())], float(shares.max()))


def losses_of(
    model: FoveatedModel, cache: ClipCache, output: PassOutput, captions: Captions
) -> Tensor:
    """Mean cross-entropy [B] of answers in a pass."""
    captions = captions.to(output.queries.device, non_blocking=False)
    losses = model.caption_losses(model.repeat_pass(cache, output, captions), captions)
    assert losses is not None
    return losses
