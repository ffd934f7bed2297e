"""Lists of arrays: joblib's files of both generations, pickled lists, folders of npy files."""

import pickle

import numpy as np
import pytest

from gantransfer.pretrained.readers import read
from tests.pretrained.readers import files
from tests.pretrained.readers.test_torch_file import equal, refused

ARRAYS = [np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(4, np.float32), np.float32([[1], [2]])]
NUMBERED = {"00": ARRAYS[0], "01": ARRAYS[1], "02": ARRAYS[2]}


def old_joblib(path, arrays=ARRAYS, package="sklearn.externals.joblib", names=None):
    """The files of joblib 0.9 under Python 2, as the DCGAN scripts left them: the pickle and one npy file per array."""
    names = names or [f"{path.name}_{number:02d}.npy" for number in range(1, len(arrays) + 1)]
    opcodes = b"](" + b"".join(
        files.global_(f"{package}.numpy_pickle", "NDArrayWrapper") + b")\x81}("
        b"U\x0aallow_mmap\x88U\x08subclass" + files.global_("numpy", "ndarray")
        + b"U\x08filenameU" + bytes([len(name)]) + name.encode() + b"ub"
        for name in names
    ) + b"e"  # fmt: skip
    path.write_bytes(files.whole(opcodes))
    for name, array in zip(names, arrays, strict=True):
        if "/" not in name:
            np.save(path.with_name(name), array)
    return path


@pytest.mark.parametrize("package", ["joblib", "sklearn.externals.joblib"])
def test_arrays_in_files_of_their_own(tmp_path, package):
    contents = read(old_joblib(tmp_path / "200_gen_params.jl", package=package))
    assert contents.format == "theano"
    equal(contents.states[""], NUMBERED)
    assert [path.name for path in contents.files] == [
        "200_gen_params.jl", *(f"200_gen_params.jl_{number:02d}.npy" for number in (1, 2, 3)),
    ]  # fmt: skip


def test_the_files_written_here_are_what_joblib_reads(tmp_path):
    joblib = pytest.importorskip("joblib")
    path = old_joblib(tmp_path / "params.jl", package="joblib")
    with pytest.warns(DeprecationWarning, match="joblib version less than 0.10"):
        found = joblib.load(path)
    assert all(np.array_equal(a, b) for a, b in zip(found, ARRAYS, strict=True))


def test_arrays_inside_the_pickle(tmp_path):
    joblib = pytest.importorskip("joblib")
    arrays = [*ARRAYS, np.asfortranarray(ARRAYS[0]), np.arange(3, dtype=">i4")]
    joblib.dump(arrays, tmp_path / "params.jl")
    state = read(tmp_path / "params.jl").states[""]
    assert list(state) == ["00", "01", "02", "03", "04"]
    assert all(np.array_equal(a, b) for a, b in zip(state.values(), arrays, strict=True))
    joblib.dump({"G": {"w": ARRAYS[0]}}, tmp_path / "dict.jl")
    equal(read(tmp_path / "dict.jl").states["G"], {"w": ARRAYS[0]})
    data = (tmp_path / "params.jl").read_bytes()
    for end in (1, 50, len(data) // 2, len(data) - 1):
        (tmp_path / "cut.jl").write_bytes(data[:end])
        refused(tmp_path / "cut.jl")


@pytest.mark.parametrize("compress", [1, ("gzip", 3)])
def test_compressed_files_are_refused(tmp_path, compress):
    joblib = pytest.importorskip("joblib")
    joblib.dump(ARRAYS, tmp_path / "params.jl", compress=compress)
    refused(tmp_path / "params.jl", "begins with")


@pytest.mark.parametrize(
    "name", ["../secret.npy", "/etc/secret.npy", "..", ".", "a/b.npy", "a\\b.npy", "missing.npy", "x" * 200]
)
def test_names_of_parts_outside_the_folder_are_refused(tmp_path, name):
    (tmp_path / "inner" / "a").mkdir(parents=True)
    for place in ("secret.npy", "inner/a/b.npy"):
        np.save(tmp_path / place, ARRAYS[0])
    path = tmp_path / "inner" / "params.jl"
    old_joblib(path, arrays=ARRAYS[:1], names=["ok.npy"])
    path.write_bytes(path.read_bytes().replace(b"U\x06ok.npy", b"U" + bytes([len(name)]) + name.encode()))
    refused(path, "in the file")


def test_parts_that_are_links_or_no_arrays_are_refused(tmp_path):
    path = old_joblib(tmp_path / "params.jl", arrays=ARRAYS[:1])
    part = tmp_path / "params.jl_01.npy"
    part.rename(tmp_path / "elsewhere.npy")
    part.symlink_to(tmp_path / "elsewhere.npy")
    refused(path, "not there")
    part.unlink()
    part.write_bytes(b"no array")
    refused(part, "magic bytes", at=path)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_pickled_lists(tmp_path, protocol):
    (tmp_path / "params.pkl").write_bytes(pickle.dumps(ARRAYS, protocol=protocol))
    equal(read(tmp_path / "params.pkl").states[""], NUMBERED)


def test_folders_of_numbered_files(tmp_path):
    for number, array in enumerate(ARRAYS):
        np.save(tmp_path / f"params_{number}.npy", array)
    contents = read(tmp_path)
    assert contents.format == "theano" and len(contents.files) == 3
    equal(contents.states[""], NUMBERED)
    (tmp_path / "params_1.npy").unlink()
    refused(tmp_path / "params_0.npy", "without a gap", at=tmp_path)


def test_numbers_of_many_arrays_sort_as_they_count(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([np.float32([n]) for n in range(101)]))
    state = read(tmp_path / "a.pkl").states[""]
    assert list(state) == sorted(state) and state["100"] == [100]
