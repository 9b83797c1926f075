"""The explorer: what answers a widget, and what it shows where there is none."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from mlp_interp.explorer.reading import Reading
from mlp_interp.explorer.snapshot import document
from mlp_interp.models import Weights
from mlp_interp.models.indices import indices
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.single import one_each
from mlp_interp.views._page import FIT, framed, save_html

__all__ = ["Explorer", "explore"]

_WANTED = {str: "a text", int: "a token id, or None"}
_FIT = FIT.replace("document.body.offsetHeight", "document.documentElement.scrollHeight")


def explore(
    model: Model,
    prompt: Any,
    *,
    answer: int | str | None = None,
    foil: int | str | None = None,
    position: int = -1,
    live: bool = True,
) -> "Explorer":
    """Look around in one prompt by hand, in a notebook.

    The map shows what each sub-update and head adds directly to a logit (`attribute_logits`).
    Clicking on one shows the tokens that it promotes and suppresses there, and what it went by: a
    head's attention, the neurons of an MLP, a neuron's activation on each token. Clicking on a
    token of the prompt looks at the prediction after it, on a predicted token at that token's
    logit; with shift pressed it becomes the one to compare with. A prompt that is typed in is run
    at once.

    Answers come from Python through a widget where `anywidget` is installed (the extra
    ``notebook``); elsewhere, in exported notebooks and in what `Explorer.save` writes, stands a
    page that holds the prediction of one position with all that can be clicked on there. Effects
    through later layers are not in the map: see `mlp_interp.ablate_total`.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        prompt: A text, which begins with BOS, or the ids of one prompt, run as they are.
        answer: The token whose logit is attributed first, an id or a word that is one token; None
            for the likeliest.
        foil: The token whose logit is taken off; None for the mean over the vocabulary.
        position: After which token is looked first; negative ones count from the end.
        live: Whether a notebook may show the widget. A notebook that is run and exported in one go
            (``nbconvert --execute``) keeps the widget and nothing that answers it: say False.

    Raises:
        ValueError: Not one prompt of at most 256 tokens; a token or a position that is none.

    Example:
        >>> from mlp_interp import load_model
        >>> seen = explore(load_model("nano"), "The capital of France is")
        >>> seen
        Explorer('The capital of France is', ' is' predicts ' Paris')
        >>> found = seen.answer({"ask": "unit", "unit": "3.mlp"})
        >>> sorted(found["unit"])
        ['neurons', 'promoted', 'share', 'suppressed', 'unit']
    """
    return Explorer(model, prompt, answer=answer, foil=foil, position=position, live=live)


class Explorer:
    """One prompt that can be clicked through; made by `explore`.

    Shows itself in Jupyter. It holds the last prompt that was typed in.
    """

    def __init__(
        self,
        model: Model,
        prompt: Any,
        *,
        answer: int | str | None = None,
        foil: int | str | None = None,
        position: int = -1,
        live: bool = True,
    ) -> None:
        """See `explore`."""
        weights = Weights.of(model)
        ids = [
            None if x is None else int(one_each(weights, x, 1, name)[0])
            for name, x in (("answer", answer), ("foil", foil))
        ]
        self._take(Reading(model, prompt), prompt)
        self._asked = self._reading.asked(position, *ids)
        self._live = live and find_spec("anywidget") is not None
        self._widget: Any = None

    @torch.no_grad()
    def answer(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """What a click asks, as plain numbers and texts.

        Args:
            question: ``ask`` is ``"first"``, ``"text"`` (another prompt, ``text``), ``"map"`` or
                ``"unit"`` (its label, ``unit``); ``position``, ``answer`` and ``foil`` (token ids)
                say whose logit, as now where they are left out.

        Returns:
            ``text``, ``map`` and ``unit``, what of them was asked for; or ``error``, a sentence.
        """
        try:
            return self._answered(question)
        except ValueError as error:
            return {"error": str(error)}

    def _answered(self, question: Mapping[str, Any]) -> dict[str, Any]:
        ask, unit = question.get("ask"), question.get("unit")
        for name, kind in (("text", str), ("unit", str), ("answer", int), ("foil", int)):
            given = question.get(name)
            if given is None and not (name == ask == "text"):
                continue
            if not isinstance(given, kind) or isinstance(given, bool):
                raise ValueError(f"{name}={given!r}; wanted {_WANTED[kind]}")
        if ask == "text":
            self._take(Reading(self._reading.model, question["text"]), question["text"])
            self._asked = self._reading.asked()
        elif ask in ("map", "unit"):
            now = vars(self._asked)
            given = {name: question.get(name, now[name]) for name in now}
            self._asked = self._reading.asked(**given)
        elif ask != "first":
            raise ValueError(f"ask={ask!r}; wanted 'first', 'text', 'map' or 'unit'")
        found: dict[str, Any] = {}
        if ask in ("first", "text"):
            found["text"] = {**self._reading.text(self._prompt), "live": True}
        if ask != "unit":
            found["map"] = self._reading.map(self._asked)
        if unit is not None:
            found["unit"] = self._reading.units(self._asked, [unit])[0]
        return found

    def html(self, positions: Any = ()) -> str:
        """A complete document that asks no server for anything.

        Args:
            positions: Whose predictions it holds beside the one that is shown, one or several, None
                for all; each takes the place of all sub-updates, heads and many neurons.

        Raises:
            ValueError: A position that is none.
        """
        length = len(self._reading.tokens)
        listed = () if isinstance(positions, tuple | list) and not len(positions) else positions
        others = indices("positions", listed, length) if listed != () else ()
        every = sorted({self._asked.position, *others})
        return document(self._reading, self._prompt, self._asked, every, _FIT)

    def save(self, path: str | Path, *, positions: Any = ()) -> Path:
        """Write `html` to a file, all of it or nothing.

        Raises:
            ValueError: The path does not end in ``.html``, or its folder is not there; a position
                that is none.
        """
        return save_html(self.html(positions), path)

    def _take(self, reading: Reading, prompt: Any) -> None:
        self._reading = reading
        self._prompt = prompt if isinstance(prompt, str) else "".join(reading.text("")["tokens"])

    def _repr_mimebundle_(self, **_kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The page; and the widget before it, where there are widgets."""
        page = framed(self.html(), "explorer", 640)
        shown: dict[str, Any] = {"text/plain": repr(self), "text/html": page}
        if not self._live:
            return shown, {}
        from mlp_interp.explorer.widget import widget_for

        self._widget = self._widget or widget_for(self.answer)
        bundle = self._widget._repr_mimebundle_() or {}
        data, about = bundle if isinstance(bundle, tuple) else (bundle, {})
        return {**data, **shown}, dict(about)

    def __repr__(self) -> str:
        """The prompt and the prediction that is looked at."""
        at, answer = self._asked.position, self._asked.answer
        last, told = self._reading.strings([self._reading.tokens[at], answer])
        return f"Explorer({self._prompt!r}, {last!r} predicts {told!r})"
