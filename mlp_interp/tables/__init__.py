"""Results as short tables: the largest entries, named, with their errors and units."""

from mlp_interp.tables._compare import compare as compare
from mlp_interp.tables._table import Table as Table
from mlp_interp.tables._table import table as table
from mlp_interp.tables.ranking import top as top

__all__ = [
    "Table",
    "compare",
    "table",
    "top",
]
__dir__ = __all__.copy
