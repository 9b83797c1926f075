"""What attention heads look for, write and feed: from weights alone, and on data."""

from mlp_interp.heads._compose import compose as compose
from mlp_interp.heads._detect import detect as detect
from mlp_interp.heads._induction import induction as induction
from mlp_interp.heads._match import match as match
from mlp_interp.heads._positions import positions as positions
from mlp_interp.heads._roles import roles as roles
from mlp_interp.heads._scores import split_scores as split_scores
from mlp_interp.heads._shares import read_shares as read_shares

__all__ = [
    "compose",
    "detect",
    "induction",
    "match",
    "positions",
    "read_shares",
    "roles",
    "split_scores",
]
__dir__ = __all__.copy
