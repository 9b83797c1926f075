"""`Contrast`: pairs of clean and corrupted prompts, with what should follow each."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerBase

from mlp_interp.models.indices import subscript
from mlp_interp.models.options import check_choice
from mlp_interp.models.protocol import Cache, Model
from mlp_interp.prompts.checks import (
    check_lengths,
    check_pairs,
    check_sets,
    check_tensors,
    check_whole,
)
from mlp_interp.prompts.display import contrast_html, contrast_text
from mlp_interp.prompts.pairs import padded_rows, tokenize_pairs
from mlp_interp.prompts.tokenizing import decode, token_strings, tokenizer_if_any, tokenizer_name

__all__ = ["Contrast"]

_SETS = {"answers": ("all_answers", "answer_tokens"), "foils": ("all_foils", "foil_tokens")}


@dataclass(frozen=True, eq=False, repr=False)
class Contrast:
    """Pairs of clean and corrupted prompts, of equal length, with answer and foil of each pair.

    After the clean prompt `answers` is right; after the corrupted one, which differs in a few
    tokens, `foils` is. A score such as ``logit(answer) - logit(foil)`` therefore points toward
    clean when positive. *Denoising* puts activations of the clean run into the corrupted one,
    *noising* the reverse; both need the tokens to line up, so the two prompts of a pair have the
    same length. Pairs may differ in length: shorter ones are padded on the right, `lengths` says
    where they end, and every analysis gives each pair the numbers that it has by itself.

    Made by `Contrast.of` from texts, or by the tasks of `mlp_interp.prompts`.

    Attributes:
        clean_tokens: Token ids, ``[prompt, pos]``.
        corrupted_tokens: Token ids, ``[prompt, pos]``.
        answers: Right after clean, ``[prompt]``; of several tokens the first.
        foils: Right after corrupted and wrong after clean, ``[prompt]``; of several the first.
        subject: True at the tokens of the phrase that was exchanged, ``[prompt, pos]``; None where
            it is not known.
        all_answers: Every right continuation of each clean prompt, where the task has several
            (greater-than); else just the answer.
        all_foils: Every wrong one of the same kind; else just the foil.
        attrs: Where the prompts come from (``task``, ``data``, ``seed``, ``tokenizer``), as a
            result carries it.
        tokenizer: Turns the ids back into text; None prints the ids.
        answer_tokens: The whole answer of each prompt, of one token or several, which the metric
            ``"answer_log_probability"`` reads; what else reads answers reads their first tokens,
            and the results say so in ``attrs["answers"]``.
        foil_tokens: The whole foils.
        lengths: Tokens of each pair, ``[prompt]``, of which the longest fills `clean_tokens`; what
            stands after them is set to 0 and never looked at. None where all are equally long.

    Raises:
        ValueError: No prompts, unequal shapes, ids that are no token ids, an answer that is its
            own foil, or a pair that does not differ; the text names the prompt.

    Example:
        >>> import torch
        >>> contrast = Contrast(
        ...     clean_tokens=torch.tensor([[0, 5, 7]]),
        ...     corrupted_tokens=torch.tensor([[0, 6, 7]]),
        ...     answers=torch.tensor([8]),
        ...     foils=torch.tensor([9]),
        ... )
        >>> contrast.differs
        tensor([[False,  True, False]])
    """

    clean_tokens: Int[Tensor, "prompt pos"]
    corrupted_tokens: Int[Tensor, "prompt pos"]
    answers: Int[Tensor, " prompt"]
    foils: Int[Tensor, " prompt"]
    subject: Bool[Tensor, "prompt pos"] | None = None
    all_answers: tuple[tuple[int, ...], ...] = ()
    all_foils: tuple[tuple[int, ...], ...] = ()
    attrs: dict[str, Any] = field(default_factory=dict)
    tokenizer: PreTrainedTokenizerBase | None = None
    lengths: Int[Tensor, " prompt"] | None = None
    answer_tokens: tuple[tuple[int, ...], ...] = ()
    foil_tokens: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        check_lengths(self)
        self._clear_padding()
        check_tensors(self)
        for single, names in _SETS.items():
            ids = tuple((token,) for token in getattr(self, single).tolist())
            for name in names:
                object.__setattr__(self, name, getattr(self, name) or ids)
        check_whole(self)
        check_pairs(self)
        check_sets(self)
        task = self.attrs.get("task", "prompts")
        described = {
            "task": task,
            "data": f"{task}: {len(self)} pairs of {self.length_text} tokens",
        }
        if any(len(tokens) > 1 for tokens in (*self.answer_tokens, *self.foil_tokens)):
            described["answers"] = "the first tokens of several"
        object.__setattr__(self, "attrs", {**self.attrs, **described})

    def _clear_padding(self) -> None:
        """What is padded with must not matter: it is 0, no subject, and not there if it can be."""
        if self.lengths is None:
            return
        lengths = self.lengths.to(self.clean_tokens.device, torch.int64)
        object.__setattr__(self, "lengths", lengths)
        for name in ("clean_tokens", "corrupted_tokens", "subject"):
            tensor = getattr(self, name)
            if tensor is not None:
                padding = ~self.real.to(tensor.device)
                object.__setattr__(self, name, tensor.masked_fill(padding, 0))
        if bool((lengths == self.length).all()):
            object.__setattr__(self, "lengths", None)

    @classmethod
    def of(
        cls,
        model: Model,
        clean: str | Sequence[str] | Tensor | Cache,
        corrupted: str | Sequence[str] | Tensor | Cache,
        answers: str | int | Sequence[str | int] | Tensor,
        foils: str | int | Sequence[str | int] | Tensor,
        *,
        subjects: Sequence[str | None] | None = None,
        prepend_bos: bool = True,
        task: str = "prompts",
    ) -> "Contrast":
        """Tokenise pairs of prompts.

        Args:
            model: A model, with a tokenizer if texts are to be read; or a Hugging Face tokenizer.
            clean: Prompts after which the answer is right: one text or several; token ids ``[pos]``
                or ``[prompt, pos]``, taken as they are; or a run or cache of them.
            corrupted: As many prompts that differ from them, each as long in tokens as its clean
                one.
            answers: What follows each clean prompt, with its leading space (``" Mary"``); or token
                ids. Of several tokens, all are kept in `answer_tokens`.
            foils: What follows each corrupted prompt.
            subjects: The phrase of each clean prompt that was exchanged, for `subject`.
            prepend_bos: Begin every prompt with BOS (``<|endoftext|>``), as every Pythia training
                sequence may; a prompt that has it already gets no second one.
            task: Name of the task, for provenance.

        Returns:
            A `Contrast` on the model's device.

        Raises:
            ValueError: Nothing given; unequal numbers of prompts, answers or foils; clean and
                corrupted of unequal length; an answer of tokens that the model does not know; or
                what `Contrast` itself refuses. The text shows prompt and tokens.

        Example:
            >>> from mlp_interp import load_model
            >>> contrast = Contrast.of(
            ...     load_model("nano"),
            ...     clean="The capital of France is",
            ...     corrupted="The capital of Italy is",
            ...     answers=" Paris",
            ...     foils=" Rome",
            ... )
            >>> contrast
            Contrast(task='prompts', prompts=1, length=6)
              clean[0]     <|endoftext|>The capital of‹ France› is
              corrupted[0] <|endoftext|>The capital of‹ Italy› is
              answer ' Paris', foil ' Rome'
        """
        pairs = tokenize_pairs(
            model,
            {"clean": clean, "corrupted": corrupted},
            {"answers": answers, "foils": foils},
            subjects=subjects,
            prepend_bos=prepend_bos,
        )
        attrs = {
            "task": task,
            "tokenizer": tokenizer_name(model),
            "bos": "each" if prepend_bos else "none",
        }
        contrast = cls(**pairs, attrs=attrs, tokenizer=tokenizer_if_any(model))
        return contrast.to(getattr(getattr(model, "cfg", None), "device", None) or "cpu")

    @property
    def length(self) -> int:
        """Tokens of the longest prompt, BOS included."""
        return int(self.clean_tokens.shape[1])

    @property
    def length_text(self) -> str:
        """How long the prompts are, in words: ``"10"``, or ``"7 to 10"``."""
        if self.lengths is None:
            return str(self.length)
        return f"{int(self.lengths.min())} to {int(self.lengths.max())}"

    @property
    def real(self) -> Bool[Tensor, "prompt pos"]:
        """True at the prompts' own tokens, False at padding."""
        if self.lengths is None:
            return torch.ones_like(self.clean_tokens, dtype=torch.bool)
        positions = torch.arange(self.length, device=self.lengths.device)
        return positions < self.lengths[:, None]

    @property
    def differs(self) -> Bool[Tensor, "prompt pos"]:
        """True where clean and corrupted have different tokens."""
        return self.clean_tokens != self.corrupted_tokens

    @property
    def clean_text(self) -> list[str]:
        """The clean prompts as text, BOS included."""
        return [decode(self.tokenizer, row) for row in self.rows("clean")]

    @property
    def corrupted_text(self) -> list[str]:
        """The corrupted prompts as text, BOS included."""
        return [decode(self.tokenizer, row) for row in self.rows("corrupted")]

    @property
    def answer_text(self) -> list[str]:
        """The answers as text, all tokens of each."""
        return self._texts(self.answer_tokens)

    @property
    def foil_text(self) -> list[str]:
        """The foils as text, all tokens of each."""
        return self._texts(self.foil_tokens)

    def _texts(self, whole: Sequence[Sequence[int]]) -> list[str]:
        return [decode(self.tokenizer, list(tokens)) for tokens in whole]

    def rows(self, which: Literal["clean", "corrupted"] = "clean") -> list[list[int]]:
        """Token ids ``[prompt][pos]`` without padding, so that prompts may differ in length.

        Raises:
            ValueError: `which` is neither "clean" nor "corrupted".
        """
        check_choice("which", which, ("clean", "corrupted"))
        tokens = self.clean_tokens if which == "clean" else self.corrupted_tokens
        lengths = self.real.sum(-1).tolist()
        return [row[:length] for row, length in zip(tokens.tolist(), lengths, strict=True)]

    def token_text(self, which: Literal["clean", "corrupted"] = "clean") -> list[list[str]]:
        """Each token by itself as text, ``[prompt][pos]``: the labels of a figure's axis.

        Raises:
            ValueError: `which` is neither "clean" nor "corrupted".
        """
        return [token_strings(self.tokenizer, row) for row in self.rows(which)]

    def swap(self) -> "Contrast":
        """The same pairs with clean and corrupted, answer and foil exchanged."""
        return replace(
            self,
            clean_tokens=self.corrupted_tokens,
            corrupted_tokens=self.clean_tokens,
            answers=self.foils,
            foils=self.answers,
            all_answers=self.all_foils,
            all_foils=self.all_answers,
            answer_tokens=self.foil_tokens,
            foil_tokens=self.answer_tokens,
        )

    def followed_by(self, tokens: Sequence[Sequence[int]]) -> "Contrast":
        """Both prompts of each pair with tokens after them: all of these but the last.

        The last is what they predict, so it need not be run: after one token nothing changes.

        Args:
            tokens: Token ids for each prompt, ``[prompt][token]``.

        Raises:
            ValueError: Not some for each prompt.

        Example:
            >>> from mlp_interp import load_model
            >>> contrast = Contrast.of(
            ...     load_model("nano"),
            ...     clean="She lives in",
            ...     corrupted="They live in",
            ...     answers=" Paris and Rome",
            ...     foils=" Rome",
            ... )
            >>> contrast.followed_by(contrast.answer_tokens).clean_text
            ['<|endoftext|>She lives in Paris and']
        """
        if len(tokens) != len(self) or not all(tokens):
            raise ValueError(
                f"tokens={[list(some) for some in tokens]}; wanted at least one for each of "
                f"{len(self)} prompts"
            )
        clean, corrupted = (
            [[*row, *more[:-1]] for row, more in zip(self.rows(which), tokens, strict=True)]
            for which in ("clean", "corrupted")
        )
        device, lengths = self.clean_tokens.device, list(map(len, clean))
        added = max(lengths) - self.length
        return replace(
            self,
            clean_tokens=padded_rows(clean).to(device),
            corrupted_tokens=padded_rows(corrupted).to(device),
            subject=None if self.subject is None else pad(self.subject, (0, added)),
            lengths=torch.tensor(lengths, device=device),
        )

    def to(self, device: str | torch.device) -> "Contrast":
        """The same prompts with their tensors on another device."""
        return replace(
            self,
            clean_tokens=self.clean_tokens.to(device),
            corrupted_tokens=self.corrupted_tokens.to(device),
            answers=self.answers.to(device),
            foils=self.foils.to(device),
            subject=None if self.subject is None else self.subject.to(device),
            lengths=None if self.lengths is None else self.lengths.to(device),
        )

    def __len__(self) -> int:
        return int(self.clean_tokens.shape[0])

    def __getitem__(self, index: Any) -> "Contrast":
        """Some of the prompts, cut to the longest of them; an integer gives a `Contrast` of one.

        Args:
            index: An integer, a slice, several integers, or one bool for each prompt; lists, or
                arrays and tensors.

        Raises:
            IndexError: There is no such prompt.
            ValueError: None is chosen.
        """
        chosen = subscript(index, len(self))
        if not chosen:
            raise ValueError(f"index={index!r} is empty; wanted some of {len(self)} prompts")
        lengths = None if self.lengths is None else self.lengths[chosen]
        length = self.length if lengths is None else int(lengths.max())
        return replace(
            self,
            clean_tokens=self.clean_tokens[chosen, :length],
            corrupted_tokens=self.corrupted_tokens[chosen, :length],
            answers=self.answers[chosen],
            foils=self.foils[chosen],
            subject=None if self.subject is None else self.subject[chosen, :length],
            all_answers=tuple(self.all_answers[prompt] for prompt in chosen),
            all_foils=tuple(self.all_foils[prompt] for prompt in chosen),
            answer_tokens=tuple(self.answer_tokens[prompt] for prompt in chosen),
            foil_tokens=tuple(self.foil_tokens[prompt] for prompt in chosen),
            lengths=lengths,
        )

    def by_length(self) -> "list[tuple[list[int], Contrast]]":
        """The prompts of each length by themselves, shortest first, and which prompts they are."""
        if self.lengths is None:
            return [(list(range(len(self))), self)]
        groups: dict[int, list[int]] = {}
        for prompt, length in enumerate(self.lengths.tolist()):
            groups.setdefault(length, []).append(prompt)
        return [(groups[length], self[groups[length]]) for length in sorted(groups)]

    def __repr__(self) -> str:
        return contrast_text(self)

    def _repr_html_(self) -> str:
        return contrast_html(self)
