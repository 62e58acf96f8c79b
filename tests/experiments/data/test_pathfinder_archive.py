import io
import re
import tarfile

import numpy as np
import pytest

from experiments.data import pathfinder_archive as archive
from experiments.data.workers import in_processes
from experiments.errors import UserError
from tests.experiments.data import fabricated_pathfinder as fabricated

INNER = "lra_release/lra_release"


def under(prefix, files):
    return {f"{prefix}/{name}": content for name, content in files.items()}


def read(source, tmp_path, resolution=32, contour_length=14):
    found = archive.find(str(source), resolution, contour_length)
    return found.read(tmp_path / "scratch")


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Others take a second to start."""
    monkeypatch.setattr(
        archive, "in_processes", lambda function, inputs, _: map(function, inputs)
    )


def check(rows, resolution=32, seed=0, kept=slice(None)):
    pixels, labels = fabricated.pixels(resolution, seed)
    assert rows.values.reshape(len(rows), -1).tolist() == pixels[kept].tolist()
    assert rows.labels.tolist() == labels[kept].tolist()
    assert rows.values.dtype == rows.labels.dtype == np.uint8
    assert set(rows.lengths.tolist()) == {resolution**2}


@pytest.fixture
def tar(tmp_path):
    """The official archive: other resolutions and difficulties, two copies of 128."""
    files = under(INNER, fabricated.files(32))
    for seed, folder in ((1, archive.FOLDERS[9]), (2, archive.FOLDERS[6])):
        files |= under(INNER, fabricated.files(32, folder=folder, seed=seed))
    files |= under(INNER, fabricated.files(128, seed=3, form=fabricated.as_numpy))
    files |= under("lra_release", fabricated.files(128, seed=4))
    files |= {f"{INNER}/listops-1000/basic_val.tsv": b"Source\tTarget\r\n"}
    return fabricated.write_archive(tmp_path / "archive" / "lra_release.gz", files)


@pytest.mark.parametrize(
    ("resolution", "contour_length", "seed"),
    [(32, 14, 0), (32, 9, 1), (32, 6, 2), (128, 14, 3)],
)
def test_the_archive_is_read_packed_and_unpacked(
    resolution, contour_length, seed, tar, tmp_path
):
    for source in (tar, tar.parent):
        rows, n_empty = read(source, tmp_path, resolution, contour_length)
        check(rows, resolution, seed)
        assert n_empty == 0
    with tarfile.open(tar) as packed:
        packed.extractall(tmp_path / "here", filter="data")
    for source in (tmp_path / "here", tmp_path / "here" / "lra_release"):
        rows, _ = read(source, tmp_path, resolution, contour_length)
        check(rows, resolution, seed)


@pytest.mark.parametrize("form", [fabricated.as_text, fabricated.as_numpy])
@pytest.mark.parametrize("packed", [False, True])
def test_order_labels_and_counts_with_an_empty_file(form, packed, tmp_path):
    files = fabricated.files(32, form=form)
    files[f"pathfinder32/{fabricated.HARD}/imgs/2/sample_1.png"] = b""
    if packed:
        source = fabricated.write_archive(tmp_path / "a" / "some.tar", files, "w")
    else:
        source = fabricated.write_tree(tmp_path / "a", files)
    rows, n_empty = read(source, tmp_path)
    assert (len(rows), n_empty) == (11, 1)
    check(rows, kept=[i for i in range(12) if i != 5])


def test_several_processes_decode(monkeypatch, tmp_path):
    monkeypatch.setattr(archive, "in_processes", in_processes)
    monkeypatch.setattr(archive, "_CHUNK", 4 * 32**2)
    files = fabricated.files(32)
    tree = fabricated.write_tree(tmp_path / "tree", files)
    found = archive.find(str(tree), 32, 14)
    check(found.read(tmp_path / "scratch", n_workers=2)[0])
    (tree / IMAGE).write_bytes(b"no PNG")
    with pytest.raises(UserError, match="imgs/10/sample_3.png: it is no image"):
        found.read(tmp_path / "scratch", n_workers=2)


def test_the_folder_itself_may_be_named(tmp_path, monkeypatch):
    fabricated.write_tree(tmp_path, fabricated.files(32))
    check(read(tmp_path / "pathfinder32", tmp_path)[0])
    monkeypatch.chdir(tmp_path)
    check(read(".", tmp_path)[0])


def test_the_outer_copy_is_refused_unless_named(tmp_path, monkeypatch):
    outer = under("lra_release", fabricated.files(128, seed=4))
    tar = fabricated.write_archive(tmp_path / "lra_release.tar.gz", outer)
    with pytest.raises(UserError, match="pathfinder128 is the outer of two"):
        read(tar, tmp_path, 128)
    fabricated.write_tree(tmp_path / "there", outer)
    with pytest.raises(UserError, match="is the outer of two .* inner one: unpack"):
        read(tmp_path / "there", tmp_path, 128)
    named = tmp_path / "there" / "lra_release" / "pathfinder128"
    check(read(named, tmp_path, 128)[0], 128, 4)
    inner = under(INNER, fabricated.files(128, seed=3))
    fabricated.write_tree(tmp_path / "there", inner)
    check(read(tmp_path / "there", tmp_path, 128)[0], 128, 3)
    monkeypatch.chdir(tmp_path / "there" / "lra_release")
    check(read(".", tmp_path, 128)[0], 128, 3)


def test_what_is_there_is_said(tmp_path):
    with pytest.raises(UserError, match="no folder pathfinder32 .in it: nothing"):
        archive.find(str(tmp_path / "nowhere"), 32, 14)
    (tmp_path / "listops-1000").mkdir()
    with pytest.raises(UserError, match="in it: listops-1000.: name lra_release.gz"):
        archive.find(str(tmp_path), 32, 14)
    for name in ("a", "b"):
        fabricated.write_tree(tmp_path / name, fabricated.files(32))
    with pytest.raises(
        UserError, match="holds Pathfinder 2 times, in .*a/path.*b/path"
    ):
        archive.find(str(tmp_path), 32, 14)
    with pytest.raises(
        UserError, match="curv_baseline has no metadata .*in it: curv_c"
    ):
        read(tmp_path / "a", tmp_path, 32, 6)
    files = fabricated.files(32)
    tar = fabricated.write_archive(
        tmp_path / "one.tar.gz", under("./pathfinder_data/new", files)
    )
    check(read(tar, tmp_path)[0])
    reason = "no metadata of pathfinder64/curv.*_14 .in it: pathfinder_.*/curv.*_14"
    with pytest.raises(UserError, match=reason):
        read(tar, tmp_path, 64)
    files |= under("copy", files)
    tar = fabricated.write_archive(tmp_path / "two.tar.gz", files)
    with pytest.raises(UserError, match="holds copy/pathfinder32/.*, pathfinder32/"):
        read(tar, tmp_path)


IMAGE = f"pathfinder32/{fabricated.HARD}/imgs/10/sample_3.png"
METADATA = f"pathfinder32/{fabricated.HARD}/metadata/2.npy"
ROWS = fabricated.rows(2)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (IMAGE, b"\x89PNG", "imgs/10/sample_3.png: it is no image, or a damaged one"),
        (
            IMAGE,
            fabricated.files(32)[IMAGE][:-100],
            "imgs/10/sample_3.png: it is no image, or a damaged one",
        ),
        (
            IMAGE,
            fabricated.png(fabricated.picture(64, 0)),
            "imgs/10/sample_3.png: it has 64 x 64 pixels, not 32 x 32",
        ),
        (IMAGE, None, "has no image imgs/10/sample_3.png, which its metadata lists"),
        (METADATA, b"", "metadata/2.npy is no metadata of Pathfinder: it has no lines"),
        (METADATA, b"\xff\xfe", "metadata/2.npy is no metadata .*codec can't decode"),
        (METADATA, b"<!DOCTYPE html>\n", "line 1 has no label 0 or 1 in its fourth"),
        (
            METADATA,
            fabricated.as_text(ROWS[:2] + [ROWS[2][:3] + ["2"] + ROWS[2][4:]]),
            "line 3 has no label 0 or 1 .*'imgs/2 sample_2.png 2 2 1.0",
        ),
        (METADATA, fabricated.as_numpy(ROWS)[:300], "2.npy is no metadata of"),
        (METADATA, fabricated.as_numpy(ROWS[0]), r"its shape is \(11,\), not"),
        (METADATA, fabricated.as_numpy([ROWS, 1][:1])[:8], "2.npy is no metadata of"),
    ],
)
def test_what_is_damaged_is_named(name, content, reason, packed, tmp_path):
    files = fabricated.files(32) | {name: content}
    files = {name: content for name, content in files.items() if content is not None}
    if packed:
        source = fabricated.write_archive(tmp_path / "archive.tar.gz", files)
    else:
        source = fabricated.write_tree(tmp_path / "tree", files)
    with pytest.raises(UserError, match=reason) as error:
        read(source, tmp_path)
    message = str(error.value)
    assert str(source) in message and "\n" not in message
    assert message.endswith("or leave data.source empty to draw the images")


def test_metadata_that_would_run_code_is_refused(tmp_path):
    file = io.BytesIO()
    np.save(file, np.array([[print]], object))
    files = fabricated.files(32) | {METADATA: file.getvalue()}
    with pytest.raises(UserError, match="2.npy is no metadata .*allow_pickle=False"):
        read(fabricated.write_tree(tmp_path / "tree", files), tmp_path)


def test_a_misnamed_batch_is_named(tmp_path):
    files = fabricated.files(32)
    files[METADATA.replace("2.npy", "two.npy")] = files.pop(METADATA)
    with pytest.raises(UserError, match="two.npy is no metadata: its name is not"):
        read(fabricated.write_tree(tmp_path / "tree", files), tmp_path)


def test_many_empty_files_are_refused(tmp_path):
    files = fabricated.files(32)
    for i in (1, 2):
        files[f"pathfinder32/{fabricated.HARD}/imgs/2/sample_{i}.png"] = b""
    with pytest.raises(UserError, match="2 of 12 images are empty .*/2/sample_1.png"):
        read(fabricated.write_tree(tmp_path / "tree", files), tmp_path)


@pytest.mark.parametrize("part", [0.5, 0.98])
def test_a_truncated_archive_is_one_line(part, tar, tmp_path):
    content = tar.read_bytes()
    tar.write_bytes(content[: int(part * len(content))])
    with pytest.raises(UserError, match="cannot be read to its end") as error:
        read(tar, tmp_path)
    assert str(tar) in str(error.value) and "\n" not in str(error.value)


def test_a_truncated_plain_tar_is_noticed(tmp_path):
    tar = fabricated.write_archive(tmp_path / "x.tar", fabricated.files(32), "w")
    content = tar.read_bytes()
    last = re.search(rb"pathfinder32[^\0]*imgs/0/sample_1.png", content).start()
    for size, reason in (
        (last, "has no image imgs/0/sample_0.png"),  # between two files
        (last + 600, "cannot be read to its end"),  # inside one
    ):
        tar.write_bytes(content[:size])
        with pytest.raises(UserError, match=reason):
            read(tar, tmp_path)


def test_something_else_is_no_archive(tmp_path):
    (tmp_path / "lra_release.gz").write_bytes(b"<!DOCTYPE html><title>403</title>")
    with pytest.raises(UserError, match="cannot be read to its end as a tar"):
        read(tmp_path, tmp_path)


def test_files_tell_versions_apart(tmp_path):
    tree = fabricated.write_tree(tmp_path / "tree", fabricated.files(32))
    found = archive.find(str(tree), 32, 14)
    assert [path.name for path in found.files()] == ["0.npy", "10.npy", "2.npy"]
