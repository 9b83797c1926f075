"""Load Pythia and models of other families into TransformerLens, from wherever they are."""

import contextlib
import copy
import difflib
import weakref
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging

from mlp_interp.models.backends import boot_bridge, boot_hooked
from mlp_interp.models.families import beyond_hooked, refuse_config
from mlp_interp.models.finite import are_finite
from mlp_interp.models.smollm2 import smollm2_path
from mlp_interp.nano import weights_path

__all__ = ["LOCAL", "PYTHIA", "describe", "load_model", "reload_source"]

Processing = Literal["folded", "raw"]
Backend = Literal["auto", "hooked", "bridge"]

_SIZES = ("14m", "31m", "70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")
_DEDUPED = _SIZES[2:]
PYTHIA = tuple(f"pythia-{s}" for s in _SIZES) + tuple(f"pythia-{s}-deduped" for s in _DEDUPED)
"""Short names of models on the hub; ``EleutherAI/`` may stand before them."""

LOCAL = {"nano": weights_path, "nano-1": partial(weights_path, 1), "smollm2": smollm2_path}
"""Names of models that are no others' on the hub, and where each lies on this machine."""

# What `load_model` knows of a model and the model itself does not say. Weak, so that describing a
# model never keeps it in memory.
_loaded: "weakref.WeakKeyDictionary[Any, dict[str, Any]]" = weakref.WeakKeyDictionary()


def load_model(
    name: str | Path | PreTrainedModel = "nano",
    *,
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str = torch.float32,
    processing: Processing = "folded",
    backend: Backend = "auto",
    tokenizer: PreTrainedTokenizerBase | None = None,
    label: str | None = None,
) -> Any:
    """Load a model as a TransformerLens model, ready for every analysis.

    Args:
        name: ``"nano"``, the model shipped with the package, or ``"nano-1"``, the same recipe begun
            with other random numbers; ``"smollm2"``, which comes by pip
            (`mlp_interp.models.smollm2`); a Pythia name (``"pythia-70m"``, ``"70m"``,
            ``"EleutherAI/pythia-70m-deduped"``); a local Hugging Face directory, or
            ``"owner/name"`` on the hub, of a model of one of `FAMILIES` (GPT-NeoX, Llama, Mistral,
            Qwen, GPT-2, OLMo, Gemma and others); or such a model in memory, with `tokenizer`.
        revision: Training checkpoint of a Pythia model on the hub, e.g. ``"step143000"``.
        device: Where to put it, ``"cpu"`` or ``"cuda"``; None takes CUDA if there is one, else
            the CPU.
        dtype: Data type of the weights, also by name (``"bfloat16"``). Attributions need float32
            to add up: GPT-NeoX has large key and value biases.
        processing: ``"folded"`` folds LayerNorm scales and value biases into the weights that
            follow and centres what writes to the stream and the unembedding, as TransformerLens
            does by default; ``"raw"`` leaves the trained weights. (Where norms do not subtract the
            mean, as in Llama, nothing but the unembedding is centred.)
        backend: ``"hooked"`` for `HookedTransformer` (TransformerLens 3 only), ``"bridge"`` for
            `TransformerBridge`, ``"auto"`` for the first that the installed library has and that
            computes what the model's config asks for.
        tokenizer: For a model in memory; else read from beside the weights. Without one a model
            takes token ids, and no texts.
        label: What results call the model; None for its name, or that of its directory.

    Returns:
        A `HookedTransformer` or `TransformerBridge` in evaluation mode.

    Raises:
        ValueError: Unknown name, device or dtype, a model of another family or with a config that
            TransformerLens does not carry out, weights with NaN, options that do not go together.
        ConnectionError: The hub could not be reached; the text says what to do.

    Example:
        >>> model = load_model("nano")
        >>> model.cfg.n_layers, model.cfg.parallel_attn_mlp
        (4, True)
    """
    if processing not in ("folded", "raw"):
        raise ValueError(f"processing={processing!r}; wanted 'folded' or 'raw'")
    backend, device = _backend(backend), _device(device)
    dtype = _dtype(dtype)
    source: Any = None
    if isinstance(name, torch.nn.Module):
        if revision is not None:
            raise ValueError(f"revision={revision!r}: only models on the hub have revisions")
        hf_model, own = _in_memory(name, dtype), name.config.name_or_path or "memory"
    else:
        source, own = _resolve(str(name), revision)
        hf_model = _read(source, revision, dtype)
        tokenizer = _read_tokenizer(source, revision) if tokenizer is None else tokenizer
    label = own if label is None else label
    boot = boot_hooked if _able(backend, hf_model.config, label) == "hooked" else boot_bridge
    _refuse_nan(hf_model, label)
    model = boot(hf_model, tokenizer, device=device, dtype=dtype, folded=processing == "folded")
    model.cfg.model_name = label
    model.eval()
    _loaded[model] = {
        "model": label,
        "revision": revision or "main",
        "processing": processing,
        # A model in memory is the user's: remembered for check_model, but not kept alive.
        "source": weakref.ref(name) if isinstance(name, torch.nn.Module) else source,
    }
    return model


def describe(model: Any) -> dict[str, str]:
    """What a result says of the model it was measured on, as netCDF-safe attributes.

    For a model that `load_model` did not load, the revision is unknown and the processing is left
    to `check_model`, which reads it off the weights.

    Example:
        >>> describe(load_model("nano"))["processing"]
        'folded'
    """
    known = _loaded.get(model, {})
    return {
        "model": known.get("model", str(getattr(model.cfg, "model_name", "unknown"))),
        "revision": known.get("revision", "unknown"),
        "processing": known.get("processing", "as loaded by the user"),
        "dtype": str(model.W_U.dtype).removeprefix("torch."),
        "device": str(model.W_U.device),
        "backend": type(model).__name__,
    }


def reload_source(model: Any) -> PreTrainedModel | None:
    """The Hugging Face model that `load_model` read this one from, for comparison; else None."""
    source = _loaded.get(model, {}).get("source")
    if isinstance(source, weakref.ref):
        return source()
    if source is None:
        return None
    revision = _loaded[model]["revision"]
    return _read(source, None if revision == "main" else revision, torch.float32)


def _dtype(dtype: Any) -> torch.dtype:
    found = getattr(torch, dtype.removeprefix("torch."), dtype) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype={dtype!r}; wanted a floating torch dtype, such as torch.float32")
    return found


def _device(device: Any) -> torch.device:
    has_cuda = torch.cuda.is_available()
    wanted = "'cpu' or 'cuda'" if has_cuda else "'cpu': there is no CUDA device here"
    try:
        found = torch.device(device or ("cuda" if has_cuda else "cpu"))
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device={device!r} is no device; wanted {wanted}") from error
    if found.type == "cuda" and not (has_cuda and (found.index or 0) < torch.cuda.device_count()):
        raise ValueError(f"device={device!r} is not available; wanted {wanted}")
    return found


def _able(backend: Backend, config: Any, label: str) -> str:
    """The class that computes what the config asks for: `HookedTransformer` lacks some of it."""
    refuse_config(config, label)
    chosen = _first() if backend == "auto" else backend
    if chosen != "hooked" or (beyond := beyond_hooked(config)) is None:
        return chosen
    if backend == "hooked":
        raise ValueError(f"name={label!r} has {beyond}; wanted backend='bridge' or 'auto'")
    return "bridge"


def _first() -> str:
    return "bridge" if find_spec("transformer_lens.HookedTransformer") is None else "hooked"


def _backend(backend: Any) -> Backend:
    if backend not in ("auto", "hooked", "bridge"):
        raise ValueError(f"backend={backend!r}; wanted 'auto', 'hooked' or 'bridge'")
    if backend == "hooked" and _first() != "hooked":
        raise ValueError(
            "backend='hooked': the installed TransformerLens has no HookedTransformer; wanted "
            "backend='bridge', or transformer-lens<4"
        )
    return backend


def _in_memory(model: torch.nn.Module, dtype: torch.dtype) -> PreTrainedModel:
    kind: Any = type(model)
    if not (isinstance(model, PreTrainedModel) and model.can_generate()):
        raise ValueError(
            f"name={kind.__name__}; wanted a causal language model of transformers, such as a "
            "GPTNeoXForCausalLM"
        )
    refuse_config(model.config, kind.__name__)
    # Both backends may keep or change the module they are given, and its config; the user's stay as
    # they were, and so does the random state, which initialising a module draws from.
    with torch.random.fork_rng(devices=[]):
        copied: Any = kind(copy.deepcopy(model.config))
    copied.config.architectures = [kind.__name__]
    copied.load_state_dict(model.state_dict())
    return copied.to(dtype)


def _resolve(name: str, revision: str | None) -> tuple[str, str]:
    """Where to read from and what to call it."""
    if name in LOCAL or Path(name).is_dir():
        if revision is not None:
            raise ValueError(f"revision={revision!r}: only models on the hub have revisions")
        path = LOCAL[name]() if name in LOCAL else Path(name)
        if not (path / "config.json").exists():
            raise ValueError(f"name={name!r} has no config.json; wanted a Hugging Face directory")
        return str(path), name if name in LOCAL else path.resolve().name
    short = name.removeprefix("EleutherAI/")
    short = short if short.startswith("pythia-") else f"pythia-{short}"
    # The first deduped releases carry a suffix and are the reference of older notes.
    if short in PYTHIA or short.removesuffix("-v0") in PYTHIA:
        return f"EleutherAI/{short}", short
    if "/" in name.strip("/") and not name.startswith((".", "/", "~")):
        return name, name.split("/")[-1]
    known = (*LOCAL, *PYTHIA, *(pythia.removeprefix("pythia-") for pythia in PYTHIA))
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    raise ValueError(
        f"name={name!r} is neither 'nano', 'nano-1', 'smollm2', a Pythia model, nor a directory; "
        f"the nearest name is {near!r}"
    )


def _read(source: str, revision: str | None, dtype: torch.dtype) -> PreTrainedModel:
    options = _options(revision)
    with _explained(source, revision):
        config = AutoConfig.from_pretrained(source, **options)
        refuse_config(config, source)
        # Weights that are missing are drawn at random first.
        with _no_progress_bar(), torch.random.fork_rng(devices=[]):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, output_loading_info=True, **options
            )
        model, found = loaded
    if missing := sorted(found["missing_keys"]):
        raise ValueError(
            f"name={source!r} lacks the weights {', '.join(missing[:3])}"
            f"{', …' if len(missing) > 3 else ''}; wanted a whole model"
        )
    return model


def _read_tokenizer(source: str, revision: str | None) -> PreTrainedTokenizerBase | None:
    with _explained(source, revision):
        tokenizer = AutoTokenizer.from_pretrained(source, **_options(revision))
    # Where there are no tokenizer files, the library makes up a tokenizer that knows nothing.
    return tokenizer if tokenizer("a", add_special_tokens=False)["input_ids"] else None


def _options(revision: str | None) -> dict[str, Any]:
    return {} if revision is None else {"revision": revision}


@contextlib.contextmanager
def _explained(source: str, revision: str | None) -> Iterator[None]:
    """Say what to do where files cannot be read."""
    try:
        yield
    except OSError as error:
        if Path(source).is_dir():
            raise ValueError(f"name={source!r} could not be read: {_first_line(error)}") from error
        wanted = f" at revision {revision!r}" if revision else ""
        raise ConnectionError(
            f"could not get {source!r}{wanted} from the Hugging Face hub ({_first_line(error)}). "
            "Check the connection and the revision; or download the model where there is one and "
            "pass its directory; or use load_model('nano'), which needs no network"
        ) from error


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Without the bar for reading weights; that of a download, which takes long, stays."""
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _refuse_nan(model: torch.nn.Module, label: str) -> None:
    for name, parameter in model.named_parameters():
        if not are_finite(parameter):
            raise ValueError(
                f"name={label!r}: weight {name!r} holds NaN or infinity; wanted finite"
            )
