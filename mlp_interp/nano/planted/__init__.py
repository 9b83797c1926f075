"""The planted tasks, one module each.

Every module has two functions::

    document(rng, split) -> str                           # training text that shows the behaviour
    draws(rng, split, pool) -> Iterator[Example | None]   # endless clean/corrupted prompts

``draws`` yields None where a draw was of no use, so that whoever asks can stop asking.

A document of the ``"train"`` split never contains a combination of words on which the
``"heldout"`` examples are built (``mlp_interp.nano.splits``).
"""
