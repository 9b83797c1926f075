"""Folders of SAELens: ``cfg.json`` and ``sae_weights.safetensors``."""

from typing import Any

import torch
from torch import Tensor

from mlp_interp.dictionaries.activations import Activation, JumpRelu, Relu, TopK
from mlp_interp.dictionaries.dictionary import Dictionary
from mlp_interp.dictionaries.parts import Folder, Given, centred_output, placed, with_unit_rows
from mlp_interp.dictionaries.places import place_of

__all__ = ["CONFIG", "WEIGHTS", "read", "written"]

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
_NORMALIZE = {
    "none": None,
    "expected_average_only_in": None,  # in training only; the file's weights have it folded in
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm",
}
_TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
_KNOWN = ("standard", "topk", "jumprelu", *_TRANSCODERS)
_RAW = {"fold_ln": False, "center_writing_weights": False, "center_unembed": False}
_HOOK = {"mlp_in": "ln2.hook_normalized", "mlp_normalized": "ln2.hook_normalized"}


def read(folder: Folder, given: Given) -> Dictionary:
    """The dictionary of a folder.

    Raises:
        ValueError: An architecture or normalisation that is not known; a transcoder between two
            layers; what `placed` refuses.
    """
    config = folder.config
    about = {**config, **folder.section("meta"), **folder.section("metadata")}
    architecture = config.get("architecture", "standard")
    if architecture not in _KNOWN:
        raise ValueError(
            f"path={str(folder.path)!r} has architecture={architecture!r}; wanted one of "
            f"{', '.join(_KNOWN)}"
        )
    said = config.get("normalize_activations", "none") or "none"
    transcoder = architecture in _TRANSCODERS
    if said not in _NORMALIZE or (transcoder and _NORMALIZE[said]):
        raise ValueError(
            f"path={str(folder.path)!r} has normalize_activations={said!r}; wanted one of "
            f"{', '.join(_NORMALIZE)}, and 'none' of a transcoder"
        )
    W_enc, b_enc, W_dec, b_dec = map(folder.tensor, ("W_enc", "b_enc", "W_dec", "b_dec"))
    threshold = folder.tensors.get("threshold")
    if config.get("rescale_acts_by_decoder_norm"):
        W_enc, b_enc, W_dec, threshold = with_unit_rows(W_enc, b_enc, W_dec, threshold)
    if "scaling_factor" in folder.tensors:  # of activations, after they were decided on
        factor = folder.tensors["scaling_factor"]
        if len(factor) != len(W_dec):
            raise ValueError(
                f"scaling_factor is of {len(factor)} latents; wanted {len(W_dec)}, as W_dec has"
            )
        W_dec = W_dec * factor[:, None]
    subtract = given.subtract_b_dec
    if subtract is None:
        subtract = bool(config.get("apply_b_dec_to_input", not transcoder)) and not transcoder
    skip = folder.tensors.get("W_skip")
    name = about.get("hook_name_out") if transcoder else about.get("hook_name")
    reads = _read_by(folder, about, given) if transcoder else None
    place = placed(folder.path, given, name, transcoder=transcoder, reads=reads)
    wants = _processing(folder, about, place["reads"])
    made = Dictionary(
        W_enc,
        b_enc,
        W_dec,
        b_dec,
        given.activation or _activation(folder, threshold),
        **place,
        b_in=b_dec if subtract else None,
        W_skip=None if skip is None else skip.T,  # there from output to input
        normalize=_NORMALIZE[said],
        wants=given.wants or wants,
        attrs={"format": "sae_lens", "path": str(folder.path), **_said(about)},
    )
    # What is read before the norm's scale is the same of raw weights and of folded ones.
    centre = wants == "raw" and given.wants == "folded" and made.reads == "mlp_normalized"
    return centred_output(made) if centre else made


def _read_by(folder: Folder, about: dict[str, Any], given: Given) -> str | None:
    """What a transcoder reads, by the name of a hook; None where the file does not say.

    Raises:
        ValueError: It reads what is no place of ours, such as the stream between attention and MLP;
            or writes to another layer.
    """
    hook, out = about.get("hook_name"), given.place or about.get("hook_name_out")
    found = None if hook is None else place_of(hook)
    if hook is not None and found is None:
        raise ValueError(
            f"path={str(folder.path)!r} reads {hook!r}; wanted 'blocks.N.ln2.hook_normalized', or "
            "a stream"
        )
    written = None if out is None else place_of(out)
    if found and written and found[1] != written[1] and given.place is None:
        raise ValueError(
            f"path={str(folder.path)!r} reads {hook!r}, of layer {found[1]}, and writes {out!r}, "
            f"of layer {written[1]}; wanted both of one"
        )
    return None if found is None else found[0]


def _activation(folder: Folder, threshold: Tensor | None) -> Activation:
    """Which latents are active; TopK dictionaries once were written as ReLU, beside their k."""
    config = folder.config
    more = folder.section("activation_fn_kwargs")
    if config.get("architecture", "").startswith("jumprelu"):
        return JumpRelu(folder.tensor("threshold") if threshold is None else threshold)
    k = config.get("k", more.get("k"))
    is_topk = config.get("architecture") == "topk" or config.get("activation_fn_str") == "topk"
    if is_topk or k is not None:
        if k is None:
            raise ValueError(f"path={str(folder.path)!r} is a TopK without k; wanted activation=")
        return TopK(folder.whole("k", k))
    return Relu()


def _processing(folder: Folder, about: dict[str, Any], reads: str) -> Any:
    """Which weights it wants; None where nobody says.

    What is read before the norm's scale is the same in all of them, so that only what is written
    counts then: whether it has its mean. Weights that are folded but not centred are neither of
    ours, and their streams are those of raw ones.
    """
    loaded = folder.section("model_from_pretrained_kwargs", of=about)
    if about.get("model_from_pretrained_kwargs") is None:
        plain = about.get("model_class_name") == "AutoModelForCausalLM"  # of Hugging Face
        return "raw" if plain else None
    is_folded, is_centred = loaded.get("fold_ln", True), loaded.get("center_writing_weights", True)
    return "folded" if is_centred and (is_folded or reads == "mlp_normalized") else "raw"


def _said(about: dict[str, Any]) -> dict[str, Any]:
    names = ("model_name", "hook_name", "dataset_path", "context_size", "sae_lens_version")
    return {name: about[name] for name in names if isinstance(about.get(name), str | int)}


def written(dictionary: Dictionary) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors of a folder that SAELens 6 reads.

    Raises:
        ValueError: It has no architecture there.
    """
    activation, sae = dictionary.activation, dictionary.is_sae
    names: dict[type, str] = {Relu: "standard", JumpRelu: "jumprelu", TopK: "topk"}
    kind = names.get(type(activation))
    if not sae:
        skip = "skip_" if dictionary.W_skip is not None else ""
        kind = {"standard": f"{skip}transcoder", "jumprelu": f"jumprelu_{skip}transcoder"}.get(
            kind or ""
        )
    if (
        kind is None
        or (sae and dictionary.W_skip is not None)
        or dictionary.spans + dictionary.ahead > 1
    ):
        raise ValueError(
            f"package='sae_lens' has no architecture for {dictionary!r}; wanted package='sparsify'"
        )
    if dictionary.reads == "mlp_in" and dictionary.wants != "folded":
        raise ValueError(
            f"package='sae_lens' has no name for what {dictionary!r} reads, after the norm's scale "
            "and shift; wanted reads='mlp_normalized', wants='folded', or package='sparsify'"
        )
    b_enc = dictionary.b_enc
    subtract = sae and dictionary.b_in is not None and dictionary.b_in is dictionary.b_dec
    if dictionary.b_in is not None and not subtract:
        b_enc = b_enc - dictionary.b_in @ dictionary.W_enc
    back = {None: "none", "layer_norm": "layer_norm", "constant_norm": "constant_norm_rescale"}
    layer = dictionary.layer
    places = [
        f"blocks.{layer}.{_HOOK.get(name, f'hook_{name}')}"
        for name in (dictionary.reads, dictionary.writes)
    ]
    about: dict[str, Any] = {
        "hook_name": places[0],
        **({} if sae else {"hook_name_out": places[1]}),
    }
    about |= {k: v for k, v in dictionary.attrs.items() if k == "context_size"}
    about |= {} if dictionary.of_model is None else {"model_name": dictionary.of_model}
    if dictionary.wants is not None:
        about["model_from_pretrained_kwargs"] = _RAW if dictionary.wants == "raw" else {}
    config: dict[str, Any] = {
        "architecture": kind,
        "d_in": dictionary.W_enc.shape[0],
        "d_sae": dictionary.n_latents,
        "dtype": str(dictionary.W_enc.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": subtract,
        "normalize_activations": back[dictionary.normalize],
        "reshape_activations": "none",
        "metadata": about,
    }
    tensors = {"W_enc": dictionary.W_enc, "b_enc": b_enc, "W_dec": dictionary.W_dec}
    tensors["b_dec"] = dictionary.b_dec
    if isinstance(activation, TopK):
        config["k"] = activation.k
    if isinstance(activation, JumpRelu):
        tensors["threshold"] = activation.threshold.expand(dictionary.n_latents)
    if not sae:
        config |= {"d_out": dictionary.d_out}
    if dictionary.W_skip is not None:
        tensors["W_skip"] = dictionary.W_skip.T
    return config, {name: torch.clone(x.detach()).contiguous() for name, x in tensors.items()}
