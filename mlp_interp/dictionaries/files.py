"""`load`, `load_all` and `save`: dictionaries in the files of the packages that train them."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors.torch import save_file

from mlp_interp.checkpoint import whole_file
from mlp_interp.dictionaries import cross_layer, pickled, sae_lens, sparsify
from mlp_interp.dictionaries.activations import Activation
from mlp_interp.dictionaries.dictionary import Dictionary, Wants
from mlp_interp.dictionaries.parts import Folder, Given
from mlp_interp.dictionaries.reading import check_dictionary
from mlp_interp.models.options import check_choice

__all__ = ["load", "load_all", "save"]

_WRITERS = {"sae_lens": sae_lens, "sparsify": sparsify}
# A file by which each format is known.
_KNOWN_BY = {
    "sae_lens": sae_lens.WEIGHTS,
    "sparsify": sparsify.WEIGHTS,
    "dictionary_learning": pickled.WEIGHTS,
    "circuit_tracer": cross_layer.FIRST,
}


def load(
    path: str | Path,
    *,
    folder: str | None = None,
    place: str | None = None,
    activation: Activation | None = None,
    wants: Wants | None = None,
    subtract_b_dec: bool | None = None,
    revision: str | None = None,
) -> Dictionary:
    """Read a dictionary: a folder of SAELens, sparsify or dictionary_learning.

    The format is told by the files that are there. Nothing is unpickled but tensors, and none of
    these packages is needed. What the file leaves open, or says wrongly, can be said here.

    Args:
        path: A folder; or the name of a repository on the Hugging Face hub.
        folder: The dictionary's own folder in it, such as ``"layers.3.mlp"``.
        place: What an SAE reads and writes, or a transcoder writes: ``"3.mlp"``, ``"3.attn"``,
            ``"3.resid_post"``, or a hook's or module's name; None takes the file's word.
        activation: Which latents are active; None takes the file's word.
        wants: ``"raw"`` or ``"folded"``, the processing of the weights that it reads; None takes
            the file's word, and where it has none, none is wanted. Of a transcoder of SAELens for
            weights that are not centred, ``"folded"`` takes the mean out of what it writes.
        subtract_b_dec: Whether the decoder's bias is taken from the input first; None takes the
            rule of the format.
        revision: Of a repository.

    Raises:
        ValueError: There is no dictionary, one that is not known, several, or parts that do not fit
            each other.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> from mlp_interp.dictionaries import TopK
        >>> axes = torch.cat([torch.eye(3), -torch.eye(3)])
        >>> sae = Dictionary(axes.T, torch.zeros(6), axes, torch.zeros(3), TopK(2), layer=1)
        >>> with TemporaryDirectory() as into:
        ...     load(save(sae, into, package="sae_lens"))
        Dictionary: SAE of 1.mlp_out, 6 latents, TopK, k 2
    """
    where = _local(path, folder, revision)
    given = Given(place, activation, wants, subtract_b_dec)
    found = _format(where)
    if found == "sae_lens":
        return sae_lens.read(Folder.of(where, sae_lens.CONFIG, sae_lens.WEIGHTS), given)
    if found == "sparsify":
        return sparsify.read(Folder.of(where, sparsify.CONFIG, sparsify.WEIGHTS), given)
    if found == "dictionary_learning":
        return pickled.read(pickled.folder_of(where), given)
    raise ValueError(
        f"path={str(where)!r} holds "
        f"{'one dictionary for each layer' if found else _held(where)}; wanted a folder with "
        f"{', '.join(list(_KNOWN_BY.values())[:3])}, or load_all"
    )


def load_all(
    path: str | Path,
    *,
    folder: str | None = None,
    wants: Wants | None = None,
    subtract_b_dec: bool | None = None,
    revision: str | None = None,
) -> dict[str, Dictionary]:
    """Read several dictionaries: a folder of folders, or a cross-layer transcoder.

    Args:
        path: As of `load`.
        folder: As of `load`.
        wants: As of `load`.
        subtract_b_dec: As of `load`.
        revision: As of `load`.

    Returns:
        Dictionaries by the label of the place that each writes, its first: ``"3.mlp"``.

    Raises:
        ValueError: As `load`, or two are of one place.
    """
    where = _local(path, folder, revision)
    if _format(where) == "circuit_tracer":
        found = [*cross_layer.read(where, Given(wants=wants)).values()]
    else:
        each = sorted(inner for inner in where.iterdir() if inner.is_dir() and _format(inner))
        found = [load(one, wants=wants, subtract_b_dec=subtract_b_dec) for one in each]
    if not found:
        raise ValueError(
            f"path={str(where)!r} holds {_held(where)}; wanted folders that load reads"
        )
    by_label = {one.site.label: one for one in found}
    if len(by_label) < len(found):
        labels = ", ".join(one.site.label for one in found)
        raise ValueError(f"path={str(where)!r} has dictionaries of {labels}; wanted each once")
    layers = sorted(by_label, key=lambda label: by_label[label].layer)
    return {label: by_label[label] for label in layers}


def save(dictionary: Dictionary, path: str | Path, *, package: str = "sae_lens") -> Path:
    """Write a dictionary to a folder that another package reads, and `load`.

    Args:
        dictionary: The dictionary.
        path: The folder, made if it is not there.
        package: ``"sae_lens"``, or ``"sparsify"`` (TopK only; transcoders with it, too).

    Raises:
        ValueError: The package has nothing for such a dictionary.
    """
    check_choice("package", package, list(_WRITERS))
    check_dictionary(dictionary)
    writer = _WRITERS[package]
    config, tensors = writer.written(dictionary)
    path = Path(path).expanduser()
    path.mkdir(parents=True, exist_ok=True)
    with whole_file(path / writer.WEIGHTS) as part:
        save_file(tensors, part)
    with whole_file(path / writer.CONFIG) as part:
        part.write_text(json.dumps(config, indent=2))
    return path


def _format(path: Path) -> str | None:
    return next((name for name, file in _KNOWN_BY.items() if (path / file).is_file()), None)


def _held(path: Path) -> str:
    names = sorted(inner.name for inner in path.iterdir())[:8]
    return ", ".join(names) or "nothing"


def _local(path: str | Path, folder: str | None, revision: str | None) -> Path:
    """A folder on this machine; of the hub's repository, where there is none of that name."""
    if not isinstance(path, str | Path) or not isinstance(folder, str | None):
        raise ValueError(f"path={path!r}, folder={folder!r}; wanted a folder, or 'owner/name'")
    where = Path(path).expanduser()
    if not where.is_dir():
        if isinstance(path, Path) or path.count("/") != 1:
            raise ValueError(f"path={str(path)!r} is no folder; wanted one, or 'owner/name'")
        pattern: Any = None if folder is None else f"{folder}/*"
        where = Path(snapshot_download(path, revision=revision, allow_patterns=pattern))
    where = where if folder is None else where / folder
    if not where.is_dir():
        raise ValueError(f"folder={folder!r} is not in path={str(path)!r}")
    return where
