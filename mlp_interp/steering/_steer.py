"""Holding edits on a model for as long as a block of code runs."""

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from mlp_interp.edits import Edit, Fired, edits_of
from mlp_interp.edits.applying import Applier, Where, check_where, confined, whole_shape
from mlp_interp.edits.selection import axes
from mlp_interp.models import Weights
from mlp_interp.models.from_end import from_end
from mlp_interp.models.protocol import Model
from mlp_interp.models.reached import check_reached
from mlp_interp.runs.generation import generating
from mlp_interp.sites import Site

__all__ = ["Steering", "steer"]

# Ways to generate that hand tokens out one by one, or run loops of their own kind: which passes
# belong to one text cannot be known there.
_REFUSED = ("generate_stream", "diffusion_generate")
_FOLLOWED = ("generate", "hf_generate")


@contextmanager
def steer(
    model: Model, edits: Edit | Iterable[Edit], *, where: Where = "all"
) -> Iterator["Steering"]:
    """Hold edits on a model: whatever runs inside the ``with`` block runs with them.

    That is any forward pass (``model(tokens)``, ``run_with_cache``, ``run_with_hooks``), the
    model's own ``generate`` with or without its cache of keys and values, and every analysis of
    this package, which sees the edited model as if it were trained so. Blocks may be nested: edits
    of an inner one come after those of the outer ones. When the block is left, also by an error,
    nothing of it is left on the model.

    Positions count as in `Edit`. Outside ``generate`` every pass is a text of its own that begins
    at position 0, and is all prompt; that is also how a pass with a cache of your own making is
    read. In ``generate`` positions count in the whole text, negative ones from the end of the
    prompt, so that it makes no difference whether the model runs a new token alone or the whole
    text again. (Where TransformerLens pads prompts of unequal length, the padding is counted.)
    Analyses that would pad texts refuse edits that count from the end: see `Raises`.

    That is the model's own ``generate``. Inside the block each pass of `Runner.generate`,
    `generate_compare` and `dose_response` counts as a text of its own, so that new tokens cannot be
    told from the prompt: give them the edits instead of holding these. Edits at all positions with
    ``where="all"`` can be held; others are refused there.

    Args:
        model: The model.
        edits: What to do; those of one place in the order given. `add`, `project_out`, `hold` and
            `scale` make them from directions and labels.
        where: ``"prompt"`` and ``"new"`` keep edits without positions of their own to the prompt,
            or to generated tokens that are read: of n new tokens the first n - 1, so that the
            first is chosen as without the edit.

    Yields:
        A `Steering`, which tells in `fired` what each edit did.

    Raises:
        ValueError: The model has no such layer; `where` is unknown; within the block: an edit does
            not fit what is run, an edit at ``embed`` in a ``generate`` that never passes there
            (`HookedTransformer`; take ``0.resid_pre``), ``generate_stream``, one with positions
            or a `where` in a generation of this package, or one with negative positions (or keys)
            in an analysis that pads texts of several lengths, where hooks cannot know the ends.

    Warns:
        UserWarning: When the block ends well and some edit was never come to, or was taken off the
            model inside of the block (``model.reset_hooks()`` takes off all hooks).

    Example:
        >>> import torch
        >>> from mlp_interp import load_model
        >>> model, tokens = load_model("nano"), torch.tensor([[0, 5, 6]])
        >>> before = model(tokens)
        >>> with steer(model, Edit.set("2.mlp", 0.0)) as steering:
        ...     without = model(tokens)
        >>> steering.fired
        (Fired(times=1, changed=576),)
        >>> bool((without == before).all()), bool((model(tokens) == before).all())
        (False, True)
    """
    check_where(where)
    steering = Steering(model, edits, where)
    with ExitStack() as stack:
        stack.enter_context(from_end(model, [e.from_end for e in steering.edits if e.from_end]))
        before = _hooks_on(model)
        stack.enter_context(model.hooks(fwd_hooks=steering.hooks()))
        held = _hooks_on(model) - before
        for name in (*_FOLLOWED, *_REFUSED):
            if hasattr(model, name):
                stack.enter_context(_replaced(model, name, steering.around(name)))
        yield steering
        taken_off = held - _hooks_on(model)
    # Two frames up, past contextlib, is the user's block.
    if taken_off:
        places = ", ".join(dict.fromkeys(edit.site.label for edit in steering.edits))
        warnings.warn(
            f"hooks of the edits at {places} were taken off the model inside of this block, as "
            "reset_hooks() does: what ran after that ran without them",
            stacklevel=3,
        )
    if silent := [
        edit.site.label
        for edit, fired in zip(steering.edits, steering.fired, strict=True)
        if not fired.times
    ]:
        warnings.warn(f"edits at {', '.join(silent)} never fired in this block", stacklevel=3)


def _hooks_on(model: Model) -> set[tuple[str, int]]:
    """All that hooks into a pass, by its module and torch's number for it."""
    return {(name, n) for name, module in model.named_modules() for n in module._forward_hooks}


class Steering:
    """Edits that are held on a model.

    Attributes:
        edits: The edits, in the order given.
        where: Which part of a text they are kept to.
    """

    def __init__(self, model: Model, edits: Any, where: str) -> None:
        """Check what can be checked before there is a text."""
        self.edits = edits_of(edits)
        self.where = where
        self._weights = Weights.of(model)
        for edit in self.edits:
            whole_shape(edit, self._weights, (1, 1))
        check_reached(self._weights, (edit.site for edit in self.edits))
        self._done = [(0, 0) for _ in self.edits]
        self._appliers: dict[tuple[int, int], Applier] = {}
        self._text: _Text | None = None
        # Outside a generation all is prompt.
        self._on_prompt = [
            n for n, edit in enumerate(self.edits) if where != "new" or edit.positions is not None
        ]

    @property
    def fired(self) -> tuple[Fired, ...]:
        """What each edit did until now, in the order given, over all passes.

        An analysis may run the model more often than one would think: where models with hooks are
        run from a middle layer, for example, the layers below run as well, unseen.
        """
        totals = list(self._done)
        for applier in self._appliers.values():
            _count(totals, self._on_prompt, applier)
        if self._text and self._text.applier:
            _count(totals, range(len(totals)), self._text.applier)
        return tuple(Fired(times, changed) for times, changed in totals)

    def hooks(self) -> list[tuple[str, Callable[..., Tensor]]]:
        """One hook for each place that is edited, and for those that tell that a pass begins."""
        sites = {(edit.site.name, edit.site.layer): None for edit in self.edits}
        sites |= {("embed", None): None, ("resid_pre", 0): None}
        return [(Site(*place).hook_name, self._hook(*place)) for place in sites]

    def around(self, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """What a way to generate is replaced by."""

        def wrap(generate: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(generate)
            def generating(*args: Any, **kwargs: Any) -> Any:
                if name in _REFUSED:
                    raise ValueError(f"{name} cannot be steered; wanted generate")
                self._text = _Text()
                try:
                    return generate(*args, **kwargs)
                finally:
                    if applier := self._text.applier:
                        _count(self._done, range(len(self.edits)), applier)
                    self._text = None

            return generating

        return wrap

    def _hook(self, name: str, layer: int | None) -> Callable[..., Tensor]:
        def hook(x: Tensor, hook: Any = None) -> Tensor:
            shape = x.shape[0], x.shape[axes(Site(name, layer))["positions"]]
            if self._text is None:
                self._check_pass()
                return self._of_shape(*shape)(name, layer or 0, x)
            if name == "embed" or (name, layer) == ("resid_pre", 0):
                self._follow(self._text, name, *shape)
            applier = self._text.applier
            return x if applier is None else applier(name, layer or 0, x)

        return hook

    def _check_pass(self) -> None:
        """Refuse what would be misread in a generation of which nothing is known here."""
        placed = [edit for edit in self.edits if edit.positions is not None or self.where != "all"]
        if placed and generating():
            raise ValueError(
                f"the edit at {placed[0].site.label!r} (positions={placed[0].positions}, "
                f"where={self.where!r}) is held by steer, and a generation of this package does "
                "not tell it what is prompt; wanted it given to Runner.generate, generate_compare "
                "or dose_response instead, or the model's own generate"
            )

    def _of_shape(self, batch: int, length: int) -> Applier:
        """The edits on a text that is run as a whole."""
        if (batch, length) not in self._appliers:
            edits = [self.edits[n] for n in self._on_prompt]
            self._appliers[batch, length] = Applier(edits, self._weights, (batch, length))
        return self._appliers[batch, length]

    def _follow(self, text: "_Text", name: str, batch: int, length: int) -> None:
        """Learn where a pass of a generation begins, from the first place that it comes to."""
        if name == "embed":
            text.embedded = True
        elif text.embedded:
            text.embedded = False
            return
        elif any(edit.site.name == "embed" for edit in self.edits):
            raise ValueError(
                "this model's generate does not pass through its hook at 'embed', where an edit "
                "is; wanted one at '0.resid_pre'"
            )
        if text.applier is None:
            # The last position that a text can have is not known to a hook; the model's is.
            longest = max(int(self._weights.model.cfg.n_ctx), length + 1)
            edits = [confined(edit, self.where, length, longest) for edit in self.edits]
            text.applier = Applier(edits, self._weights, (batch, length), longest=longest)
        text.begin(length)


class _Text:
    """A text that is being generated."""

    def __init__(self) -> None:
        self.applier: Applier | None = None
        self.embedded = False
        self._length = 0

    def begin(self, length: int) -> None:
        """A pass over one position goes on where the last one ended; any other is of all."""
        goes_on = length == 1 and self._length > 0
        start = self._length if goes_on else 0
        self._length = start + length
        if self.applier is not None:
            self.applier.start = start


def _count(totals: list[tuple[int, int]], which: Iterable[int], applier: Applier) -> None:
    for n, fired in zip(which, applier.fired, strict=True):
        totals[n] = totals[n][0] + fired.times, totals[n][1] + fired.changed


@contextmanager
def _replaced(
    model: Model, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Put a function in the place of a method of this one object."""
    own, before = vars(model), vars(model).get(name)
    own[name] = wrap(getattr(model, name))
    try:
        yield
    finally:
        if before is None:
            del own[name]
        else:
            own[name] = before
