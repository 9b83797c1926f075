"""The suite's own type checks: a call that looks like one that passed is let through, no other."""

import jaxtyping
import pytest
import torch
from beartype import beartype
from jaxtyping import Float
from torch import Tensor

ANSWERS = []


def joined(
    x: Float[Tensor, "row k"], y: Float[Tensor, " k"], how: str = ""
) -> Float[Tensor, " row"]:
    return ANSWERS.pop() if ANSWERS else x @ y


@pytest.fixture
def function():
    return jaxtyping.jaxtyped(joined, typechecker=beartype)


def test_what_passed_once_hides_nothing(function):
    x, y = torch.ones(2, 3), torch.ones(3)
    for _ in range(3):
        torch.testing.assert_close(function(x, y), torch.full((2,), 3.0))
        for bad in ((x, torch.ones(2)), (x.long(), y.long()), (x[0], y), (x, None), ([x], y)):
            with pytest.raises(jaxtyping.TypeCheckError):
                function(*bad)
        with pytest.raises(jaxtyping.TypeCheckError):
            function(x, y, how=3)
        for answer in (torch.ones(3), torch.ones(2).long(), None, [torch.ones(2)]):
            ANSWERS.append(answer)
            with pytest.raises(jaxtyping.TypeCheckError, match="return value"):
                function(x, y)


def test_functions_inside_of_others_are_each_called():
    def outer(n):
        def inner(x: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
            return x + n

        return jaxtyping.jaxtyped(inner, typechecker=beartype)

    x = torch.zeros(2)
    assert [float(outer(n)(x)[0]) for n in (1, 2, 1)] == [1, 2, 1]
    for n in (1, 3):
        with pytest.raises(jaxtyping.TypeCheckError):
            outer(n)(x[0])
