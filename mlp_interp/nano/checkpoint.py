"""Writing the trained model as a Hugging Face directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from mlp_interp.nano.architecture import config_dict

if TYPE_CHECKING:
    from transformers import GPTNeoXForCausalLM, PreTrainedTokenizerFast

__all__ = ["load", "save"]


def save(
    folder: Path, model: GPTNeoXForCausalLM, tokenizer: PreTrainedTokenizerFast, card: str
) -> None:
    """Write config, float16 weights, tokenizer and model card into ``folder``.

    The weights replace the old file in one step, so an interrupted run leaves the last
    whole checkpoint.
    """
    import torch
    from safetensors.torch import save_file

    from mlp_interp.checkpoint import whole_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        # Pythia's name for it in every published checkpoint; transformers 5 renamed its own.
        name.replace("lm_head.", "embed_out."): tensor.detach()
        .to("cpu", torch.float16)
        .contiguous()
        for name, tensor in model.state_dict().items()
    }
    (folder / "config.json").write_text(json.dumps(config_dict(), indent=2) + "\n")
    tokenizer.save_pretrained(folder)
    _name_tokenizer_class(folder / "tokenizer_config.json")
    (folder / "README.md").write_text(card)
    with whole_file(folder / "model.safetensors") as part:
        save_file(weights, part, metadata={"format": "pt"})


def _name_tokenizer_class(path: Path) -> None:
    # The class that reads tokenizer.json as it stands, under the name that old and new
    # releases of transformers both know. GPTNeoXTokenizer would lose the digit pairs.
    settings = json.loads(path.read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def load(folder: Path) -> tuple[GPTNeoXForCausalLM, PreTrainedTokenizerFast]:
    """Load what ``save`` wrote, as float32, with attention whose patterns can be read.

    Raises:
        ValueError: If ``folder`` holds no weights.
    """
    from transformers import GPTNeoXForCausalLM, PreTrainedTokenizerFast

    if not (folder / "model.safetensors").is_file():
        raise ValueError(f"folder is {str(folder)!r}, expected one with model.safetensors")
    model = GPTNeoXForCausalLM.from_pretrained(folder, attn_implementation="eager")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    return model.float().eval(), tokenizer
