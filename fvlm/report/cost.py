"""What a model weighs, and what a clip costs: counts that are the same on every machine."""

from collections import Counter

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fvlm.clips.batch import Batch
from fvlm.model.foveated import FoveatedModel, ends_of

# The parts of a foveated model in words.
PARTS = {
    "encoder": "patch encoder",
    "attention": "query attention",
    "language": "language model",
    "output": "caption head",
    "head": "prediction head",
}
REST = "queries and projections"


def count_parameters(model: FoveatedModel) -> dict[str, int]:
    """Parameters by part in words, and all."""
    found = Counter[str]()
    for name, parameter in model.named_parameters():
        found[PARTS.get(name.partition(".")[0], REST)] += parameter.numel()
    return {**found, "all": found.total()}


def clip_flops(model: FoveatedModel, batch: Batch) -> int:
    """Floating-point operations of a prediction for a batch of one clip, coarse and fine passes.

    Matrix products and convolutions, a multiplication and an addition being two; of text its states
    and no logits. Model and batch are on the CPU. Only shapes are computed: it takes no time, and
    no kernel decides.
    """
    B, T = batch.latents.shape[:2]
    with (
        torch.inference_mode(),
        sdpa_kernel(SDPBackend.MATH),  # attention as the products that it is
        FakeTensorMode(allow_non_fake_inputs=True),
        FlopCounterMode(display=False) as counter,
    ):
        cache = model.cache_clips(batch.inputs, batch.captions)
        passes = model.run_passes(cache, B, T, captions=batch.captions)
        previous = model.encode_previous(batch.latents.float())
        for output in ends_of(passes):
            model.head(output.predictor, previous)
    return int(counter.get_total_flops())
