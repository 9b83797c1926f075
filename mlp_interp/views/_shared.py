"""The script that draws views, once in a notebook instead of once in each view."""

from dataclasses import dataclass

from mlp_interp.views import _page
from mlp_interp.views.bundle import circuitsvis

__all__ = ["Shared", "share"]


@dataclass(frozen=True)
class Shared:
    """The script as a hidden element of the notebook, and one sentence that says so."""

    def _repr_html_(self) -> str:
        return (
            f'<div hidden id="{_page.SHARED}">{circuitsvis()}</div>'
            "<small>Views below take the script that draws them from here.</small>"
        )

    def __repr__(self) -> str:
        return "the script of views; shows itself in a notebook"


def share() -> Shared:
    """Put the script that draws views into a notebook once, for views of half a MB less each.

    Make it the last line of a cell above the views. From then on `View` shows itself without the
    script and takes it from there, so that cell has to keep its output, also in an exported page;
    a view that does not find it says so. What `save` and `html` give is complete as ever.

    Example:
        >>> from mlp_interp.views import tokens
        >>> share()
        the script of views; shows itself in a notebook
        >>> len(tokens(["The", " cat"], [0.5, -1.0])._repr_html_()) < 10_000
        True
    """
    _page.sharing = True
    return Shared()
