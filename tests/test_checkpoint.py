"""Files that are whole or not there, and pieces that are computed once."""

import errno
import os
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from processes import begin, end
from safetensors import SafetensorError

from mlp_interp.checkpoint import TENSORS, Checkpoint, whole_file
from mlp_interp.results import DATASETS, load, save, save_groups


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_a_file_takes_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with whole_file(path) as part:
        assert part.suffix == ".txt"
        part.write_text("new")
        assert path.read_text() == "old"
    assert (names(tmp_path), path.read_text()) == (["a.txt"], "new")


def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def interrupted():
        with whole_file(path) as part:
            part.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (names(tmp_path), path.read_text()) == (["a.txt"], "old")


def test_it_is_on_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    order, replace = [], Path.replace
    monkeypatch.setattr(os, "fsync", lambda file: order.append("on disk"))
    monkeypatch.setattr(Path, "replace", lambda *to: (order.append("named"), replace(*to)))
    with whole_file(tmp_path / "a.txt") as part:
        part.write_text("all")
    assert order == ["on disk", "named"]


def test_what_a_link_points_to_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "a.txt", tmp_path / "link.txt"
    target.write_text("old")
    link.symlink_to(target)
    with whole_file(link) as part:
        part.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_two_processes_do_not_write_one_file(tmp_path, monkeypatch):
    parts = set()
    for process in (7, 8):
        monkeypatch.setattr(os, "getpid", lambda process=process: process)
        with whole_file(tmp_path / "a.txt") as part:
            part.write_text("all")
            parts.add(part)
    assert len(parts) == 2


def _write_for_ever(path):
    for number in range(1_000_000):
        with whole_file(path) as part, part.open("w") as file:
            for _ in range(200):
                file.write(f"{number:09d}")
                file.flush()


@pytest.mark.skipif(sys.platform == "win32", reason="kills with SIGKILL")
def test_whoever_is_killed_leaves_a_whole_file(tmp_path):
    path = tmp_path / "a.txt"
    child = begin(_write_for_ever, path)
    while not path.exists():
        assert child.is_alive()
        time.sleep(0.01)
    time.sleep(0.05)
    os.kill(child.pid, signal.SIGKILL)
    end(child)
    text = path.read_text()
    assert text == text[:9] * 200


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_a_result_that_cannot_be_written_leaves_the_old_one(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    save(xr.DataArray([1.0], dims="x"), path)
    with pytest.raises((TypeError, ValueError)):
        save(xr.DataArray([2.0], dims="x", attrs={"model": object()}), path)
    assert load(path).values.tolist() == [1.0]
    assert names(tmp_path) == [path.name]
    save(xr.DataArray([3.0], dims="x"), path)
    assert load(path).values.tolist() == [3.0]


def test_a_store_replaces_no_folder_of_other_things(tmp_path):
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "thesis.tex").write_text("all of it")
    with pytest.raises(ValueError, match="is a folder of other things"):
        save(xr.DataArray([1.0], dims="x"), tmp_path / "a.zarr")
    assert (tmp_path / "a.zarr" / "thesis.tex").exists()


def test_groups_of_one_file(tmp_path):
    parts = {"a": xr.DataArray([1.0], dims="x"), "b/c": xr.Dataset({"y": 2.0})}
    path = save_groups(parts, tmp_path / "all.nc")
    assert names(tmp_path) == ["all.nc"]
    read = {name: xr.load_dataset(path, group=name, engine="h5netcdf") for name in parts}
    assert float(read["a"]["value"][0]) == 1
    assert float(read["b/c"]["y"]) == 2


LARGE = torch.zeros(1 << 16)


@pytest.mark.skipif(sys.platform == "win32", reason="limits files by setrlimit")
# zarr may still look at what it has half written when the error is on its way.
@pytest.mark.filterwarnings("ignore:Object at result is not recognized")
@pytest.mark.parametrize("suffix", [".txt", ".safetensors", ".nc", ".zarr"])
def test_a_full_disk_is_one_error_that_names_the_file(tmp_path, suffix):
    import resource

    path, result = tmp_path / f"a{suffix}", xr.DataArray(LARGE.numpy(), dims="x")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def write():
        if suffix == ".txt":
            with whole_file(path) as part:
                part.write_text("all" * (1 << 16))
        elif suffix == ".safetensors":
            Checkpoint(tmp_path, TENSORS).keep("a", {"x": LARGE})
        else:
            # Random numbers: zarr would press zeros together.
            save(result.copy(data=np.random.default_rng(0).random(result.shape)), path)

    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, limits[1]))
    try:
        with pytest.raises(OSError, match=rf"make room, or write elsewhere: '.*a{suffix}'") as full:
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert full.value.errno == errno.EFBIG
    assert names(tmp_path) == []
    write()
    assert names(tmp_path) == [path.name]


def test_what_libraries_say_of_a_full_disk_is_understood(tmp_path):
    for error in (
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Can't write data (file write failed: errno = 28, error message = 'No s')"),
        SafetensorError("IoError: No space left on device (os error 28)"),
    ):
        with pytest.raises(OSError, match=r"make room.*a\.txt"), whole_file(tmp_path / "a.txt"):
            raise error
    with pytest.raises(RuntimeError, match="another"), whole_file(tmp_path / "a.txt"):
        raise RuntimeError("another")


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(tmp_path, monkeypatch):
    path, put = tmp_path / "a.zarr", Path.replace
    save(xr.DataArray([1.0], dims="x"), path)

    def fails(self, target):
        if Path(target) == path and not self.name.endswith("-old"):
            raise PermissionError("not now")
        return put(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", fails)
        with pytest.raises(PermissionError, match="not now"):
            save(xr.DataArray([2.0], dims="x"), path)
    assert names(tmp_path) == [path.name]
    assert load(path).values.tolist() == [1.0]


def ones(missing):
    for item in missing:
        yield {"x": torch.full((2,), float(item))}


class TestCheckpoint:
    @pytest.mark.parametrize("kept", [True, False], ids=["kept", "not kept"])
    def test_pieces_come_in_the_order_of_their_names(self, tmp_path, kept):
        folder, asked, steps = tmp_path / "deep" / "down", [], []

        def compute(missing):
            asked.append(list(missing))
            return ones(missing)

        for listed in ([2], [1, 2, 3]):
            store = Checkpoint(folder if kept else None, TENSORS, done=lambda: steps.append(1))
            pieces = store.fill([f"piece-{n}" for n in listed], listed, compute)
            assert [float(piece["x"][0]) for piece in pieces] == listed
        assert asked == ([[2], [1, 3]] if kept else [[2], [1, 2, 3]])
        assert len(steps) == 4
        assert store.names() == ({"piece-1", "piece-2", "piece-3"} if kept else set())

    def test_each_is_kept_as_soon_as_it_is_there(self, tmp_path):
        def compute(missing):
            yield from ones(missing[:1])
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            Checkpoint(tmp_path, TENSORS).fill(["a", "b"], [1, 2], compute)
        assert Checkpoint(tmp_path, TENSORS).names() == {"a"}

    def test_nothing_is_computed_where_none_is_missing(self, tmp_path):
        Checkpoint(tmp_path, TENSORS).fill(["a"], [1], ones)
        (piece,) = Checkpoint(tmp_path, TENSORS).fill(["a"], [1], lambda missing: iter([{}, {}]))
        assert piece["x"].tolist() == [1.0, 1.0]

    def test_results_are_kept_too(self, tmp_path):
        result, calls = xr.DataArray([1.0], dims="x", name="y"), []
        for _ in range(2):
            store = Checkpoint(tmp_path, DATASETS)
            xr.testing.assert_identical(store.once("a", lambda: calls.append(1) or result), result)
        assert len(calls) == 1

    def test_what_was_left_unfinished_is_no_piece(self, tmp_path):
        (tmp_path / "unfinished-1-a.safetensors").write_bytes(b"half")
        store = Checkpoint(tmp_path, TENSORS)
        assert store.names() == set()
        assert store.read("a") is None

    def test_a_forgotten_piece_is_gone(self, tmp_path):
        store = Checkpoint(tmp_path, TENSORS)
        store.keep("a", {"x": torch.ones(1)})
        store.forget("a")
        store.forget("a")
        assert store.read("a") is None

    @pytest.mark.parametrize("damage", ["a bit", "the end", "half of it", "all of it"])
    @pytest.mark.parametrize("form", [TENSORS, DATASETS], ids=["tensors", "nc"])
    def test_a_damaged_piece_is_named_and_done_again(self, tmp_path, form, damage):
        good, piece = (
            ({"x": torch.full((1,), n)} if form is TENSORS else xr.DataArray([n], dims="x"))
            for n in (1.0, 2.0)
        )
        store = Checkpoint(tmp_path, form)
        store.keep("a", good)
        (path,) = tmp_path.iterdir()
        content = bytearray(path.read_bytes())
        if damage == "a bit":  # of the number itself: it would be read without an error
            content[content.index(b"\0\0\x80\x3f" if form is TENSORS else b"\xf0\x3f")] ^= 1
        elif damage == "the end":
            del content[-1:]
        else:
            del content[len(content) // 2 if damage == "half of it" else 0 :]
        path.write_bytes(content)
        with pytest.warns(UserWarning, match=rf"{path.name}' is damaged: .* is computed again"):
            (again,) = store.fill(["a"], [1], lambda items: iter([piece]))
        assert again is piece
        kept = store.read("a")
        assert kept is not None
        assert float(kept["x"][0] if form is TENSORS else kept[0]) == 2

    def test_a_folder_that_another_process_deletes_is_made_again(self, tmp_path):
        times = []

        def write(piece, path):
            times.append(path)
            if len(times) == 1:
                shutil.rmtree(path.parent)  # the other one has finished
            TENSORS.write(piece, path)

        store = Checkpoint(tmp_path / "kept", replace(TENSORS, write=write))
        store.keep("a", {"x": torch.ones(1)})
        assert store.names() == {"a"}

    def test_a_folder_that_is_a_file_is_refused(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(ValueError, match=r"checkpoint='.*file' is a file; wanted a directory"):
            Checkpoint(tmp_path / "file" / "sweep-1", TENSORS)
