"""The nano model: generated text with planted behaviour, training, trained weights.

Importing this package is cheap: nothing here loads torch.
"""

from pathlib import Path

__all__ = ["weights_path"]


def weights_path() -> Path:
    """Return the Hugging Face directory that holds the trained nano model.

    Returns:
        The path of a directory with ``config.json``, ``model.safetensors`` and the
        tokenizer's files, as ``transformers`` loads them.
    """
    return Path(__file__).parent / "weights"
