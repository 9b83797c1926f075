"""What a dictionary's latents write, do and mean, and what it leaves unexplained."""

from mlp_interp.latents._train import train as train

__all__ = ["train"]
