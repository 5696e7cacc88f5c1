"""Autoregressive inference: the queries come from the same pass, frame by frame.

    h(m) -> Y_1;  q_1 = q_init -> v_1 -> h(v_1) -> Y_2;  q_2 = W_q h(v_1) -> v_2 -> ..

Training runs coarse and fine passes over all frames in parallel instead; the difference of the two
losses is the gap between training and inference. After T - 1 fine passes there is none.

Axes: B batch, T frames, N tokens, D token width, H hidden width.
"""

import torch
from torch import Tensor
from transformers import DynamicCache

from fvlm.model.captions import Prefix
from fvlm.model.foveated import ClipCache, FoveatedModel, PassOutput


def run_autoregressive(model: FoveatedModel, cache: ClipCache, B: int, T: int) -> PassOutput:
    """One fine pass over the B*T cached frames in which every query is the pass's own.

    The language model keeps its keys and values, so that T frames cost T + 1 short steps.
    `queries` and `next_queries` of the result are the same: the pass is its own successor.
    """
    prefix, language = cache.prefix, model.language
    past = prefix.memory(language) if prefix else DynamicCache(config=language.config)
    first_frames = torch.arange(B, device=model.q_init.device) * T
    state = _step(model, model.mode_tokens["fine"].expand(B, 1, -1), past, prefix, 0)
    query = model.q_init.expand(B, 1, -1)
    predictor, queries, attention, visual = [state], [query], [], []
    for t in range(T):
        token, weights = model.read_frames(cache.frames.take(first_frames + t), query)
        visual.append(token)
        attention.append(weights)
        if t < T - 1:
            state = _step(model, token, past, prefix, t + 1)
            query = model.to_query(state)
            predictor.append(state)
            queries.append(query)
    found = torch.cat(queries, dim=1)
    return PassOutput(
        queries=found,
        attention=torch.cat(attention, dim=1),
        visual=torch.cat(visual, dim=1),
        predictor=torch.cat(predictor, dim=1),
        next_queries=found,
    )


def _step(
    model: FoveatedModel, token: Tensor, past: DynamicCache, prefix: Prefix | None, before: int
) -> Tensor:
    """Feed one token [B,1,H] after `before` others, remembered in `past`; its state [B,1,H]."""
    places = prefix.places(before, 1) if prefix else {}
    output = model.language(inputs_embeds=token, past_key_values=past, use_cache=True, **places)
    state: Tensor = output.last_hidden_state
    return state
