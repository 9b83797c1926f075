"""`python -m mlp_interp` is `mlp-interp`."""

from mlp_interp.cli import app

if __name__ == "__main__":
    app()
