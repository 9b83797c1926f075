"""What attention heads look for, write and feed: from weights alone, and on data."""

from mlp_interp.heads._compose import compose as compose
from mlp_interp.heads._match import match as match
from mlp_interp.heads._positions import positions as positions
from mlp_interp.heads._roles import roles as roles

__all__ = ["compose", "match", "positions", "roles"]
