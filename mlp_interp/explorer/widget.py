"""The explorer as a Jupyter widget: the same script, with Python at the other end."""

from collections.abc import Callable
from typing import Any

from mlp_interp.explorer.snapshot import source, style

__all__ = ["widget_for"]


def widget_for(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """A widget whose questions are answered by a function; each answer has its question's id."""
    import anywidget  # the extra `notebook`

    class Drawn(anywidget.AnyWidget):
        _esm = f"{source()}\nexport default {{ render }};"
        _css = style()

    widget = Drawn()

    def hear(_widget: Any, content: dict[str, Any], _buffers: Any) -> None:
        widget.send({**answer(content), "id": content.get("id")})

    widget.on_msg(hear)
    return widget
