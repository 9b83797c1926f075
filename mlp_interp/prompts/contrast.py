"""`Contrast`: clean and corrupted prompts of equal length, with what should follow each."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mlp_interp.models.protocol import Cache, Model
from mlp_interp.prompts.checks import check_pairs, check_sets, check_tensors
from mlp_interp.prompts.display import contrast_html, contrast_text
from mlp_interp.prompts.pairs import tokenize_pairs
from mlp_interp.prompts.tokenizing import decode, token_strings, tokenizer_name, tokenizer_of

__all__ = ["Contrast"]


@dataclass(frozen=True, eq=False, repr=False)
class Contrast:
    """Clean and corrupted prompts of equal length, with answer and foil of each pair.

    After the clean prompt `answers` is right; after the corrupted one, which differs in a few
    tokens, `foils` is. A score such as ``logit(answer) - logit(foil)`` therefore points toward
    clean when positive. *Denoising* puts activations of the clean run into the corrupted one,
    *noising* the reverse; both need the tokens to line up, so every prompt has the same length and
    nothing is padded.

    Made by `Contrast.of` from texts, or by the tasks of `mlp_interp.prompts`.

    Attributes:
        clean_tokens: Token ids, ``[prompt, pos]``.
        corrupted_tokens: Token ids, ``[prompt, pos]``.
        answers: Right after clean, ``[prompt]``.
        foils: Right after corrupted and wrong after clean, ``[prompt]``.
        subject: True at the tokens of the phrase that was exchanged, ``[prompt, pos]``; None where
            it is not known.
        all_answers: Every right continuation of each clean prompt, where the task has several
            (greater-than); else just the answer.
        all_foils: Every wrong one of the same kind; else just the foil.
        attrs: Where the prompts come from (``task``, ``data``, ``seed``, ``tokenizer``), as a
            result carries it.
        tokenizer: Turns the ids back into text; None prints the ids.

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

    def __post_init__(self) -> None:
        check_tensors(self)
        check_pairs(self)
        for name, ids in (("all_answers", self.answers), ("all_foils", self.foils)):
            if not getattr(self, name):
                object.__setattr__(self, name, tuple((token,) for token in ids.tolist()))
        check_sets(self)
        prompts, length = self.clean_tokens.shape
        task = self.attrs.get("task", "prompts")
        described = {"task": task, "data": f"{task}: {prompts} pairs of {length} tokens"}
        object.__setattr__(self, "attrs", {**self.attrs, **described})

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
            model: A model with a tokenizer, or a Hugging Face tokenizer.
            clean: Prompts after which the answer is right: one text or several; token ids ``[pos]``
                or ``[prompt, pos]``, taken as they are; or a run or cache of them.
            corrupted: As many prompts that differ from them, of equal length in tokens.
            answers: What follows each clean prompt, with its leading space (``" Mary"``), as one
                token; or token ids.
            foils: What follows each corrupted prompt.
            subjects: The phrase of each clean prompt that was exchanged, for `subject`.
            prepend_bos: Begin every prompt with BOS (``<|endoftext|>``), as every Pythia training
                sequence may; a prompt that has it already gets no second one.
            task: Name of the task, for provenance.

        Returns:
            A `Contrast` on the model's device.

        Raises:
            ValueError: Nothing given; unequal numbers of prompts, answers or foils; clean and
                corrupted, or two prompts, of unequal length; an answer that is not one token of the
                model; or what `Contrast` itself refuses. The text shows prompt and tokens.

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
        tokenizer = tokenizer_of(model)
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
        contrast = cls(**pairs, attrs=attrs, tokenizer=tokenizer)
        return contrast.to(getattr(getattr(model, "cfg", None), "device", None) or "cpu")

    @property
    def length(self) -> int:
        """Tokens per prompt, BOS included."""
        return int(self.clean_tokens.shape[1])

    @property
    def differs(self) -> Bool[Tensor, "prompt pos"]:
        """True where clean and corrupted have different tokens."""
        return self.clean_tokens != self.corrupted_tokens

    @property
    def clean_text(self) -> list[str]:
        """The clean prompts as text, BOS included."""
        return [decode(self.tokenizer, row) for row in self.clean_tokens.tolist()]

    @property
    def corrupted_text(self) -> list[str]:
        """The corrupted prompts as text, BOS included."""
        return [decode(self.tokenizer, row) for row in self.corrupted_tokens.tolist()]

    @property
    def answer_text(self) -> list[str]:
        """The answers as text."""
        return token_strings(self.tokenizer, self.answers.tolist())

    @property
    def foil_text(self) -> list[str]:
        """The foils as text."""
        return token_strings(self.tokenizer, self.foils.tolist())

    def token_text(self, which: Literal["clean", "corrupted"] = "clean") -> list[list[str]]:
        """Each token by itself as text, ``[prompt][pos]``: the labels of a figure's axis.

        Raises:
            ValueError: `which` is neither "clean" nor "corrupted".
        """
        if which not in ("clean", "corrupted"):
            raise ValueError(f"which={which!r}; wanted 'clean' or 'corrupted'")
        tokens = self.clean_tokens if which == "clean" else self.corrupted_tokens
        return [token_strings(self.tokenizer, row) for row in tokens.tolist()]

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
        )

    def __len__(self) -> int:
        return int(self.clean_tokens.shape[0])

    def __getitem__(self, index: int | slice) -> "Contrast":
        """Some of the prompts; an integer gives a `Contrast` of one.

        Raises:
            IndexError: There is no such prompt.
            ValueError: The slice is empty.
        """
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"index={index}: there are {len(self)} prompts")
            index = slice(index, index + 1 or None)
        return replace(
            self,
            clean_tokens=self.clean_tokens[index],
            corrupted_tokens=self.corrupted_tokens[index],
            answers=self.answers[index],
            foils=self.foils[index],
            subject=None if self.subject is None else self.subject[index],
            all_answers=self.all_answers[index],
            all_foils=self.all_foils[index],
        )

    def __repr__(self) -> str:
        return contrast_text(self)

    def _repr_html_(self) -> str:
        return contrast_html(self)
