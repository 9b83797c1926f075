"""The nano model: generated text with planted behaviour, training, weights of two runs.

Importing this package is cheap: nothing here loads torch.
"""

from pathlib import Path

__all__ = ["weights_path"]


def weights_path(start: int = 0) -> Path:
    """Return the Hugging Face directory that holds a trained nano model.

    Args:
        start: 0 is nano, 1 its sibling ``nano-1``: one tokenizer and recipe, other random numbers.

    Returns:
        The path of a directory with ``config.json``, ``model.safetensors`` and the
        tokenizer's files, as ``transformers`` loads them.

    Raises:
        ValueError: If there is no model of this start.
    """
    if start not in (0, 1):
        raise ValueError(f"start is {start}, expected 0 or 1")
    return Path(__file__).parent / ("weights-1" if start else "weights")
