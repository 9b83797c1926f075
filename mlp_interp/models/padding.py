"""Which tokens of a batch are text and which are padding: one rule for all that takes tokens.

A batch is padded if an ``attention_mask`` says so (1 where text is, 0 where padding is; ones
everywhere: nothing is padding). Without one, runs of the tokenizer's padding token at the ends of
rows of a plain tensor, or of a cache's tokens, are padding, on one side:

- Where that token means nothing else, all of every such run.
- Where it also begins texts (Pythia's does all three), one at the beginning of a row is BOS and
  text. More than one in any row is padding at the left; then the last of each run is BOS, unless
  some row begins without.
- Where it also ends texts, and every row ends with it, at least one of them with just one, that one
  is the text's own end. Where only some rows end with it, each with just one, they are padded by
  one; or they are texts that end there, as of a packed corpus: a warning says so, a mask tells.

What was told apart is in a result's ``data``. A `Corpus` is packed and has no padding. In a causal
model nothing after a token matters to it: texts are shifted to the beginning of their rows before
they run, and each gives the numbers that it gives alone.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from mlp_interp.models.caches import cached, cached_tokens
from mlp_interp.models.engine import forward_of
from mlp_interp.models.indices import indices, integers
from mlp_interp.models.protocol import Cache, Model
from mlp_interp.models.weights import Weights
from mlp_interp.results import tokens_of
from mlp_interp.sites import Site

__all__ = [
    "Padded",
    "Padding",
    "columns",
    "counted",
    "first_token",
    "packed",
    "padding_in",
    "places",
    "right_padded",
    "which_count",
]


@dataclass(frozen=True, eq=False)
class Padding:
    """Where the text of each row is: one run of positions.

    Attributes:
        real: True where text is.
        why: How that was told, in words.
    """

    real: Bool[Tensor, "batch pos"]
    why: str

    @property
    def starts(self) -> Int[Tensor, " batch"]:
        """First position of each text."""
        return self.real.int().argmax(1)

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """Tokens of each text."""
        return self.real.sum(1)

    def __str__(self) -> str:
        lengths = self.lengths
        return (
            f"{len(lengths)} texts of {int(lengths.min())} to {int(lengths.max())} tokens; "
            f"{self.why}"
        )


@dataclass(frozen=True, eq=False)
class Padded:
    """Tokens of texts that begin at position 0, with padding after the shorter ones.

    Attributes:
        tokens: Token ids; 0 where padding is.
        padding: Where that is; None if nowhere.
        attrs: What results say of the data.
        moved: By how many positions each text was moved to the beginning; None if none was.
    """

    tokens: Int[Tensor, "batch pos"]
    padding: Padding | None
    attrs: dict[str, Any]
    moved: Int[Tensor, " batch"] | None = None

    def along(self, values: Shaped[Tensor, "batch pos"]) -> Shaped[Tensor, "batch pos"]:
        """What goes with the tokens as they were given, moved as they were."""
        return values if self.moved is None else _rolled(values, self.moved.to(values.device))

    @property
    def real(self) -> Bool[Tensor, "batch pos"] | None:
        """True where text is; None if everywhere."""
        return None if self.padding is None else self.padding.real

    @property
    def lengths(self) -> Int[Tensor, " batch"] | None:
        """Tokens of each text; None if all positions are text."""
        return None if self.padding is None else self.padding.lengths

    @property
    def shortest(self) -> int:
        """Tokens of the shortest text."""
        return self.tokens.shape[1] if self.padding is None else int(self.padding.lengths.min())

    def rows(self) -> list[list[int]]:
        """Each text's own tokens."""
        if self.padding is None:
            return self.tokens.tolist()
        pairs = zip(self.tokens.tolist(), self.padding.lengths.tolist(), strict=True)
        return [row[:length] for row, length in pairs]


def right_padded(model: Model, given: Any, attention_mask: Any = None) -> Padded:
    """Tokens with each text at the beginning of its row, and which of them are text.

    Args:
        model: The model, whose tokenizer has the padding token.
        given: A corpus, which is packed, or tokens ``[batch, pos]``, padded at either side.
        attention_mask: 1 where text is, 0 where padding is, ``[batch, pos]``; None tells it by the
            rule of this module.

    Raises:
        ValueError: No tokens, a mask of another shape or with holes, a row without text, or padding
            that cannot be told.

    Example:
        >>> from mlp_interp import load_model
        >>> padded = right_padded(load_model("nano"), torch.tensor([[0, 5, 6], [0, 0, 7]]))
        >>> padded.tokens.tolist(), padded.shortest
        ([[0, 5, 6], [0, 7, 0]], 2)
    """
    tokens, attrs = tokens_of(given)
    if hasattr(given, "tokens"):
        if attention_mask is not None:
            raise ValueError(
                "attention_mask beside a corpus, which is packed; wanted None, or tokens"
            )
        return Padded(tokens, None, attrs)
    if attention_mask is None:
        padding = _recognised(getattr(model, "tokenizer", None), tokens)
    else:
        mask = torch.as_tensor(attention_mask)
        padding = _masked(mask[None] if mask.ndim == 1 else mask, tokens.shape)
    return packed(tokens, padding, attrs)


def packed(tokens: Tensor, padding: Padding | None, attrs: dict[str, Any]) -> Padded:
    """Texts at the beginning of their rows, wherever they were."""
    if padding is None or bool(padding.real.all()):
        return Padded(tokens, None, attrs)
    starts, lengths = (x.to(tokens.device) for x in (padding.starts, padding.lengths))
    real = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
    # What stands there matters to nothing; an id that the model lacks would be refused.
    shifted = _rolled(tokens, starts).masked_fill(~real, 0)
    attrs = {**attrs, "data": str(padding)}
    return Padded(shifted, Padding(real, padding.why), attrs, moved=starts)


def _rolled(
    values: Shaped[Tensor, "batch pos"], starts: Int[Tensor, " batch"]
) -> Shaped[Tensor, "batch pos"]:
    """Each row from its start on, then what stood before it."""
    length = values.shape[1]
    places = torch.arange(length, device=values.device)
    return values.gather(1, (places + starts[:, None]) % length)


def padding_in(
    weights: Weights,
    cache: Cache,
    shape: tuple[int, int],
    *,
    attention_mask: Any = None,
    tokens: Tensor | None = None,
) -> Padding | None:
    """Where the texts of a cache are; None if nothing in it is known to be padding.

    Args:
        weights: The model's.
        cache: What was kept. Its mask (``"attention_mask"``), its tokens or its embeddings tell.
        shape: Texts and positions in the cache.
        attention_mask: As in `right_padded`.
        tokens: What was run, if somebody said so.

    Raises:
        ValueError: As `right_padded`; also a run of texts padded at the left, which attend to their
            padding.
    """
    names = {*cache}
    if attention_mask is None and "attention_mask" in names:
        kept = cache["attention_mask"]
        attention_mask = kept[None] if kept.ndim == 1 else kept  # the batch axis may be taken off
    tokenizer = getattr(weights.model, "tokenizer", None)
    tokens = cached_tokens(cache) if tokens is None else tokens
    embed, pad = Site("embed"), getattr(tokenizer, "pad_token_id", None)
    padding = None
    if attention_mask is not None:
        padding = _masked(attention_mask, shape)
    elif tokens is not None and tokens.shape in (shape, (1, shape[1])):
        padding = _recognised(tokenizer, tokens.expand(shape))
    elif embed.hook_name in names and pad is not None and pad < len(weights.W_E):
        is_pad = torch.isclose(cached(cache, embed), _embedded(weights, pad), atol=1e-6).all(-1)
        padding = _recognised(tokenizer, torch.where(is_pad, pad, pad + 1))
    if padding is None or bool(padding.real.all()):
        return None
    if hasattr(cache, "tokens") and bool(padding.starts.any()):
        raise ValueError(
            "cache is a run of texts padded at the left, which attend to their padding; wanted "
            "them padded at the right"
        )
    return padding


def first_token(model: Model) -> int | None:
    """The token that begins texts: BOS, or EOS where there is none; None without a tokenizer.

    Example:
        >>> from mlp_interp import load_model
        >>> first_token(load_model("nano"))
        0
    """
    tokenizer = getattr(model, "tokenizer", None)
    bos = getattr(tokenizer, "bos_token_id", None)
    return getattr(tokenizer, "eos_token_id", None) if bos is None else bos


def counted(
    tokens: Int[Tensor, "batch pos"],
    real: Bool[Tensor, "batch pos"] | None,
    *,
    first: int,
    bos: int | None,
) -> Bool[Tensor, "batch pos"]:
    """Which tokens count in means and norms, and what ablations take away.

    Trained models attend to the first position when there is nothing to attend to, and write
    hundreds of times as much there as anywhere else, whatever token it is; also at a BOS between
    packed documents. A mean over these is no mean of the others.

    Args:
        tokens: The tokens.
        real: Where text is, not padding; None for everywhere.
        first: Position of each text from which on tokens count. 0 for all; else BOS counts nowhere.
        bos: The token that begins texts; None for none.

    Raises:
        ValueError: `first` is negative.

    Example:
        >>> counted(torch.tensor([[0, 5, 0, 6]]), None, first=1, bos=0)
        tensor([[False,  True, False,  True]])
    """
    real = torch.ones_like(tokens, dtype=torch.bool) if real is None else real.to(tokens.device)
    check_first(first)
    if first == 0:
        return real
    starts = real.int().argmax(1, keepdim=True)
    counts = real & (torch.arange(tokens.shape[1], device=tokens.device) >= starts + first)
    if bos is not None:
        counts &= tokens != bos
    return counts


def which_count(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    real: Bool[Tensor, "batch pos"] | None,
    first: int,
) -> Bool[Tensor, "batch pos"]:
    """As `counted`, of a model's tokens that are not all left out.

    Raises:
        ValueError: None counts, or `first` is negative.
    """
    counts = counted(tokens, real, first=first, bos=first_token(model))
    if tokens.numel() and not bool(counts.any()):
        raise ValueError(
            f"first={first} with {len(tokens)} texts of up to {tokens.shape[1]} tokens; wanted one "
            "that has another token than BOS there, or first=0"
        )
    return counts


def check_first(first: Any) -> None:
    """Refuse what is no position to begin at.

    Raises:
        ValueError: It is negative, or no integer.
    """
    if isinstance(first, bool) or not isinstance(first, int) or first < 0:
        raise ValueError(f"first={first!r}; wanted a position from 0")


def places(
    positions: Any, length: int, real: Bool[Tensor, "batch pos"] | None
) -> tuple[tuple[int, ...], Bool[Tensor, "batch chosen"] | None]:
    """Positions that are asked for, and at which of them each text is meant.

    Negative ones count from the end of each text, so they may be others in each row; positions from
    0 are the same in all.

    Args:
        positions: One or several; None for all.
        length: Positions there are.
        real: Where text is; None if everywhere.

    Returns:
        The positions, and, where there is padding, which of them each text is asked about.

    Raises:
        ValueError: A position is named twice, or outside a text (from 0: outside all of them).

    Example:
        >>> real = torch.tensor([[True, True, True], [True, True, False]])
        >>> places(-1, 3, real)[0], places(-1, 3, None)[0]
        ((1, 2), (2,))
    """
    if real is None:
        return indices("positions", positions, length), None
    if positions is None:
        return tuple(range(length)), real
    wanted = torch.zeros_like(real).scatter_(1, columns(positions, length, real), True) & real
    chosen = wanted.any(0).nonzero()[:, 0]
    return tuple(chosen.tolist()), wanted[:, chosen]


def columns(
    positions: Any, length: int, real: Bool[Tensor, "batch pos"]
) -> Int[Tensor, "batch chosen"]:
    """Where each text has the positions that are asked for, in their order, as in `places`.

    Raises:
        ValueError: As `places`.

    Example:
        >>> columns([-1, 0], 3, torch.tensor([[True, True, True], [True, True, False]])).tolist()
        [[2, 0], [1, 0]]
    """
    starts, lengths = real.int().argmax(1), real.sum(1)
    found = []
    for place in _distinct(positions):
        here = (starts + lengths + place) if place < 0 else torch.full_like(starts, place)
        short = -place > lengths if place < 0 else here >= length
        if bool(short.any()) or (place >= 0 and not bool(real[:, place].any())):
            row = int(short.int().argmax())
            raise ValueError(
                f"positions={place}; text {row} has {int(lengths[row])} tokens, of {length} "
                "positions: wanted one that it has"
            )
        found.append(here)
    return torch.stack(found, dim=1)


def _embedded(weights: Weights, token: int) -> Float[Tensor, " d_model"]:
    """What ``hook_embed`` shows of a token."""
    seen: list[Tensor] = []

    def observe(_name: str, _layer: int, x: Tensor) -> Tensor:
        seen.append(x[0, 0])
        return x

    forward_of(weights.model).embed(torch.tensor([[token]], device=weights.device), observe=observe)
    return seen[0]


def _distinct(positions: Any) -> tuple[int, ...]:
    """Positions as given, negative ones too, each once."""
    given = integers("positions", positions) or ()
    if not given or len({*given}) < len(given):
        raise ValueError(f"positions={list(given)}; wanted at least one integer, each once")
    return given


def _masked(given: Any, shape: Any) -> Padding:
    """What a mask says.

    Raises:
        ValueError: It is none of this shape, or a row has no text or several.
    """
    mask = torch.as_tensor(given)
    if mask.shape != torch.Size(shape) or bool(((mask != 0) & (mask != 1)).any()):
        raise ValueError(
            f"attention_mask={tuple(mask.shape)} of {mask.dtype}; wanted zeros and ones "
            f"{tuple(shape)}"
        )
    real = mask.bool()
    begins = real[:, 0].int() + (real[:, 1:] & ~real[:, :-1]).sum(1)
    if bool((begins != 1).any()):
        row = int((begins != 1).int().argmax())
        raise ValueError(
            f"attention_mask has {int(begins[row])} runs of ones in row {row}; wanted one"
        )
    return Padding(real, "padding by attention_mask")


def _recognised(tokenizer: Any, tokens: Int[Tensor, "batch pos"]) -> Padding | None:
    """What the padding token says; None where it says nothing.

    Raises:
        ValueError: It begins and ends rows, or is all of one.
    """
    pad = getattr(tokenizer, "pad_token_id", None)
    if pad is None:
        return None
    eos = getattr(tokenizer, "eos_token_id", None)
    bos = getattr(tokenizer, "bos_token_id", None)
    begins, ends = pad == (eos if bos is None else bos), pad == eos
    is_pad, length = tokens == pad, tokens.shape[1]
    some = ~is_pad.all(1)
    if not bool(some.any()) and (begins or ends):
        return None
    left, right = _run(is_pad), _run(is_pad.flip(1))
    if bool(some.any()):
        left[some], right[some] = _one_side(left[some], right[some], begins, ends, pad)
        # Of a row of nothing else, one is BOS.
        filled = length - int(begins)
        left[~some], right[~some] = (filled, 0) if bool(left[some].any()) else (0, filled)
    if bool((left + right >= length).any()):
        row = int((left + right >= length).int().argmax())
        raise ValueError(f"tokens of row {row} are nothing but padding; wanted at least one token")
    if not bool((left + right).any()):
        return None
    at = torch.arange(length, device=tokens.device)
    real = (at >= left[:, None]) & (at < length - right[:, None])
    if ends and int(right.max()) == 1 and not bool(is_pad[:, -1].all()):
        rows = right.nonzero()[:, 0].tolist()
        warnings.warn(
            f"tokens: rows {rows[:8]}{' …' if len(rows) > 8 else ''} of {len(right)} end with one "
            f"token {pad}, which pads and ends texts: taken for padding; where it is text, as in a "
            "packed corpus, give an attention_mask of ones",
            stacklevel=2,
        )
    where = "beginning" if bool(left.any()) else "end"
    own = " but a BOS" if begins and bool(left.any()) else ""
    return Padding(real, f"runs of token {pad} at the {where} of rows taken for padding{own}")


def _one_side(
    left: Int[Tensor, " row"], right: Int[Tensor, " row"], begins: bool, ends: bool, pad: int
) -> tuple[Int[Tensor, " row"], Int[Tensor, " row"]]:
    """How many of those that rows begin and end with are padding.

    Raises:
        ValueError: Some at either side are.
    """
    left, right = _before(left, begins), _after(right, ends)
    if not bool(left.any()) or not bool(right.any()):
        return left, right
    if ends and int(right.max()) == 1:  # ends of texts that are padded at the left
        return left, torch.zeros_like(right)
    raise ValueError(
        f"tokens begin and end with runs of the padding token {pad}; wanted padding at one side, "
        "or attention_mask"
    )


def _run(is_pad: Bool[Tensor, "batch pos"]) -> Int[Tensor, " batch"]:
    """How many stand at the beginning of each row."""
    return is_pad.int().cumprod(1).sum(1)


def _before(run: Int[Tensor, " row"], begins: bool) -> Int[Tensor, " row"]:
    """How many of those that rows begin with are padding."""
    if not begins:
        return run
    if int(run.max()) <= 1:
        return torch.zeros_like(run)
    return run - 1 if int(run.min()) >= 1 else run


def _after(run: Int[Tensor, " row"], ends: bool) -> Int[Tensor, " row"]:
    """How many of those that rows end with are padding."""
    return run - 1 if ends and int(run.min()) == 1 else run
