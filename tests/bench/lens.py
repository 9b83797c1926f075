"""What layers would say (`lens.read`), against the matrix products that it takes.

The products are those of every layer's stream with the unembedding, one layer a product, as a plain
lens does them, and all layers in one product; both after a pass through the blocks.
"""

import time
from collections.abc import Iterator

import torch
from rows import VOCABULARY, Row, Setting, compare, directory

import mlp_interp as mi
from mlp_interp.models import Unembed, forward_of


@torch.no_grad()
def measured(setting: Setting) -> Iterator[Row]:
    """One text, on one thread of the processor."""
    torch.set_num_threads(1)
    model = mi.load_model(directory(setting.shape, setting.root))
    shape = (1, 8 if setting.small else 64)
    tokens = torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(0))
    # A vocabulary beyond the tokenizer's reads as numbers, in no time.
    forward, unembed = forward_of(model), Unembed.of(model)
    streams = mi.run(model, tokens, sites=()).streams
    normalized = torch.stack([unembed.normalize(x[0]) for x in streams])

    def ours() -> None:
        mi.lens.read(model, tokens)

    body = lambda: forward.run(forward.embed(tokens))
    ways = {
        "its products, a layer each": (
            lambda: [body(), *(x @ unembed.weight for x in normalized)],
            1 / 1.25,
        ),
        "its products, all in one": (
            lambda: [body(), normalized.flatten(0, 1) @ unembed.weight],
            None,
        ),
        "a forward pass": (lambda: [unembed.logits(body())], 1 / 5.5),
    }
    for what, (theirs, bar) in ways.items():
        yield compare(
            f"{setting.shape}: lens.read, T={shape[1]}, against {what}",
            ours,
            lambda theirs=theirs: theirs() and None,
            repeats=setting.repeats,
            bound="1x",
            bar=bar,
            clock=time.process_time,
        )
