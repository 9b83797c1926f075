"""Prompts with what is to be read of them: labels, the entities that they are about, a position."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any, Literal

import numpy as np

from mlp_interp.models.options import check_choice
from mlp_interp.models.protocol import Model
from mlp_interp.probes.table import (
    check_column,
    check_entities,
    columns_of,
    labels_of,
    listed,
    named_labels,
)
from mlp_interp.prompts.texts import texts_of
from mlp_interp.prompts.tokenizing import tokenizer_of

__all__ = ["Labelled", "Where", "check_data"]

Where = Literal["entity", "last", "mean"]


@dataclass(frozen=True, eq=False)
class Labelled:
    """Prompts, what a probe is to read of them, and what they have in common.

    Attributes:
        rows: Token ids of each prompt.
        position: Where each is read; None for the mean over all but a BOS at the beginning.
        values: Labels ``[prompt, output]``; of classes their number in `classes`, one column.
        outputs: Names of the columns.
        classes: Names of the classes, in order; None where labels are numbers.
        entity: What each prompt is about.
        template: The text that each was made of.
        text: The prompts.
    """

    rows: tuple[tuple[int, ...], ...]
    position: np.ndarray | None
    values: np.ndarray
    outputs: tuple[str, ...]
    classes: tuple[str, ...] | None
    entity: np.ndarray
    template: np.ndarray
    text: tuple[str, ...]

    @classmethod
    def of(
        cls,
        model: Model,
        table: Any,
        *,
        text: str | Sequence[str],
        y: str | Sequence[str] | Mapping[str, Sequence[Any]],
        entity: str | None = None,
        position: Where | None = None,
        prepend_bos: bool = True,
    ) -> "Labelled":
        """Fill the rows of a table into one or several templates.

        Args:
            model: A model with a tokenizer.
            table: Rows as mappings, columns by name, or a pandas frame.
            text: Templates with columns in braces, ``"The {event} began in {year}"``; every row is
                filled into every one. ``"{text}"`` takes texts that a column holds.
            y: The column of labels: numbers, or texts or booleans for classes. Several of numbers
                are read by one probe with several outputs. A mapping holds labels of its own by
                name, one a row.
            entity: The column that says what a prompt is about. Prompts of one entity have one
                label, and probes are tested on entities that they were not fitted on. None: each
                row is one of its own.
            position: ``"entity"``: the last token of the entity, where it stands last in the
                template; ``"last"``: the prompt's last token; ``"mean"``: the mean over all tokens
                but a BOS at the beginning. None takes the entity's where a template holds it, else
                the last.
            prepend_bos: Whether prompts begin with BOS.

        Raises:
            ValueError: A column that is not there, labels that are no finite numbers or mixed, one
                class only, an entity with two labels, a template without columns, or without
                the entity where it is to be read, or a prompt that the model does not take.

        Example:
            >>> from mlp_interp import load_model
            >>> rows = [{"city": "Paris", "capital": True}, {"city": "Sydney", "capital": False}]
            >>> data = Labelled.of(
            ...     load_model("nano"), rows, text="I live in {city}.", y="capital", entity="city"
            ... )
            >>> data.text, data.classes, data.position.tolist()
            (('I live in Paris.', 'I live in Sydney.'), ('False', 'True'), [4, 4])
        """
        columns = columns_of(table)
        templates = [text] if isinstance(text, str) else listed("text", text)
        labels = named_labels(columns, y)
        if entity is not None:
            check_column(columns, entity)
        where = _where(position, templates, entity)
        count = len(next(iter(columns.values())))
        filled = [
            _filled(template, {name: held[n] for name, held in columns.items()}, entity)
            for n in range(count)
            for template in templates
        ]
        texts = [one for one, _ in filled]
        each = np.repeat(np.arange(count), len(templates))
        values, classes = labels_of(labels)
        names = [f"row {n}" for n in range(count)]
        entities = np.array(names if entity is None else [*map(str, columns[entity])])
        check_entities(entities, values)
        rows = texts_of(model, texts, what="text", prepend_bos=prepend_bos).rows
        at = None
        if where == "last":
            at = np.array([len(row) - 1 for row in rows])
        elif where == "entity":
            at = _entity_positions(model, texts, [span for _, span in filled], rows)
        return cls(
            rows=rows,
            position=at,
            values=values[each],
            outputs=tuple(labels),
            classes=classes,
            entity=entities[each],
            template=np.array(templates * count),
            text=tuple(texts),
        )

    def __repr__(self) -> str:
        """In a line."""
        read = "classes" if self.classes is not None else "numbers"
        return f"Labelled: {self.about}, {read} {', '.join(map(repr, self.outputs))}"

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> np.ndarray:
        """The number of each prompt's class.

        Raises:
            ValueError: Labels are numbers.
        """
        if self.classes is None:
            raise ValueError(
                f"y={self.outputs[0]!r} holds numbers; wanted texts or booleans, which are classes"
            )
        return self.values[:, 0].astype(int)

    @property
    def token(self) -> np.ndarray | None:
        """The token at each prompt's position; None where the mean is read."""
        if self.position is None:
            return None
        return np.array([row[at] for row, at in zip(self.rows, self.position, strict=True)])

    @property
    def about(self) -> str:
        """What results say of the data."""
        entities, templates = len({*self.entity}), len({*self.template})
        return f"{len(self)} prompts of {entities} entities in {templates} templates"


def check_data(data: Any) -> None:
    """Refuse what holds no prompts with labels.

    Raises:
        ValueError: It is no `Labelled`.
    """
    if not isinstance(data, Labelled):
        raise ValueError(f"data={type(data).__name__}; wanted a Labelled, as Labelled.of makes it")


def _where(position: Any, templates: Sequence[str], entity: str | None) -> str:
    if not templates:
        raise ValueError("text is empty; wanted at least one template")
    for template in templates:
        if not _fields(template):
            raise ValueError(
                f"text={template!r} holds no column, and would be one prompt for all rows; wanted "
                "columns in braces, '{text}', say"
            )
    holds = [entity is not None and entity in _fields(template) for template in templates]
    if position is None:
        return "entity" if all(holds) else "last"
    check_choice("position", position, ("entity", "last", "mean"))
    if position == "entity" and not all(holds):
        template = templates[holds.index(False)]
        raise ValueError(
            f"text={template!r} with position='entity' and entity={entity!r}; wanted a template "
            "that holds the entity, or 'last' or 'mean'"
        )
    return position


def _parsed(template: str) -> list[tuple[str, str | None, str | None, str | None]]:
    """Texts of a template, each with the column that follows.

    Raises:
        ValueError: Braces that are not closed, or not opened.
    """
    try:
        return list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"text={template!r}: {error}; wanted columns in braces") from None


def _fields(template: str) -> list[str]:
    return [field for _, field, _, _ in _parsed(template) if field is not None]


def _filled(
    template: str, row: Mapping[str, Any], entity: str | None
) -> tuple[str, tuple[int, int]]:
    """A template with a row's values, and where the entity stands last in it."""
    found, span = "", (0, 0)
    for literal, field, spec, conversion in _parsed(template):
        found += literal
        if field is None:
            continue
        check_column(row, field)
        value = row[field]
        try:
            piece = format(str(value) if conversion == "s" else value, spec or "")
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"text={template!r} with {field}={value!r}: {error}; wanted a format for it"
            ) from None
        if field == entity:
            span = len(found), len(found) + len(piece)
        found += piece
    return found, span


def _entity_positions(
    model: Model,
    texts: list[str],
    spans: Sequence[tuple[int, int]],
    rows: Sequence[Sequence[int]],
) -> np.ndarray:
    """The last token of each entity."""
    tokenizer = tokenizer_of(model)
    if not tokenizer.is_fast:
        raise ValueError(
            f"tokenizer={type(tokenizer).__name__} does not say where its tokens begin; wanted a "
            "fast tokenizer, or position='last'"
        )
    encoded = tokenizer(
        texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )["offset_mapping"]
    found = []
    for text, (start, end), offsets, row in zip(texts, spans, encoded, rows, strict=True):
        within = [i for i, (a, b) in enumerate(offsets) if a < end and b > start]
        if not within:
            raise ValueError(f"the entity is empty in {text!r}; wanted at least one token of it")
        found.append(within[-1] + len(row) - len(offsets))
    return np.array(found)
