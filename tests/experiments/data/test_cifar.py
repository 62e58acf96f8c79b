import os
import pickle

import numpy as np
import pytest

from experiments.data import cifar
from experiments.errors import UserError
from tests.experiments.data import fabricated_cifar as fabricated

MADE = fabricated.batches()


def under(prefix, files):
    return {f"{prefix}/{name}": content for name, content in files.items()}


def write_form(form, folder):
    python, binary = "cifar-10-batches-py", "cifar-10-batches-bin"
    pickles, records = fabricated.pickles(MADE), fabricated.records(MADE)
    if form == "python":
        return fabricated.write_folder(folder / "data" / python, pickles)
    if form == "binary":
        return fabricated.write_folder(folder / binary, records)
    if form == "python.tar.gz":
        path = folder / "cifar-10-python.tar.gz"
        return fabricated.write_tar(path, under(python, pickles))
    if form == "binary.tar.gz":
        # As tfds calls what it has downloaded.
        path = folder / "downloads" / "cs.toronto.edu_kriz_cifar-10-binaryODHPtI.tar.gz"
        return fabricated.write_tar(path, under(binary, records))
    if form == "plain.tar":
        return fabricated.write_tar(folder / "any-name", under(python, pickles), "w")
    if form == "parquet":
        return fabricated.write_parquet(folder / "plain_text", MADE)
    return fabricated.write_tfds(folder / "cifar10" / "3.0.2", MADE)


FORMS = ["python", "binary", "python.tar.gz", "binary.tar.gz", "parquet", "tfds"]


def check(found):
    for split, (pixels, labels) in fabricated.by_split(MADE).items():
        assert found[split][0].dtype == found[split][1].dtype == np.uint8
        assert np.array_equal(found[split][0], pixels)
        assert np.array_equal(found[split][1], labels)


@pytest.mark.parametrize("form", [*FORMS, "plain.tar"])
def test_all_forms_hold_the_same_images(form, tmp_path):
    path = write_form(form, tmp_path)
    check(cifar.find(str(path)).read())
    if form != "plain.tar":
        check(cifar.find(str(tmp_path)).read())


def test_the_fabricated_pickles_are_those_of_python_2():
    content = fabricated.pickles(MADE)["test_batch"]
    assert content.startswith(b"\x80\x02}")
    assert b"U\x04data" in content and b"cnumpy.core.multiarray\n" in content
    assert b"_codecs" not in content  # how Python 3 would write bytes
    assert pickle.loads(content, encoding="bytes")[b"batch_label"] == b"test_batch"


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("where", ["alone", "inside", "numpy"])
def test_a_malicious_pickle_does_nothing(where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {
        "alone": pickle.dumps(Malicious(), 2),
        "inside": pickle.dumps({b"data": Malicious(), b"labels": [1]}, 2),
        "numpy": b"cnumpy\nload\n(S'harm'\ntR.",
    }[where]
    files = fabricated.pickles(MADE) | {"data_batch_3": content}
    fabricated.write_folder(tmp_path / "cifar", files)
    with pytest.raises(UserError, match="not a batch of CIFAR-10") as error:
        cifar.find("cifar").read()
    assert "data_batch_3" in str(error.value) and "it asks for" in str(error.value)
    assert not (tmp_path / "harm").exists()


BATCH = {b"data": np.zeros((2, 3_072), np.uint8), b"labels": [0, 9]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "EOFError"),
        (fabricated.pickles(MADE)["data_batch_3"][:9_000], "Error"),
        (b"<!DOCTYPE html>", "UnpicklingError"),
        (fabricated.pickled([1, 2]), "TypeError"),
        (fabricated.pickled({b"data": BATCH[b"data"]}), "KeyError: b'labels'"),
        (fabricated.pickled(BATCH | {b"labels": [0]}), r"beside 1 labels"),
        (fabricated.pickled(BATCH | {b"labels": [0, 10]}), "from 0 to 9"),
        (fabricated.pickled(BATCH | {b"labels": [b"a", b"b"]}), "from 0 to 9"),
        (fabricated.pickled(BATCH | {b"data": np.zeros((2, 3_072))}), "float64"),
    ],
)
def test_a_wrong_batch_is_named(content, reason, tmp_path):
    files = fabricated.pickles(MADE) | {"data_batch_3": content}
    folder = fabricated.write_folder(tmp_path / "cifar", files)
    with pytest.raises(UserError, match=f"data_batch_3 is not a .*{reason}") as error:
        cifar.find(str(folder)).read()
    assert "\n" not in str(error.value)


def test_wrong_records_are_named(tmp_path):
    files = fabricated.records(MADE)
    files["data_batch_2.bin"] = files["data_batch_2.bin"][:-1]
    folder = fabricated.write_folder(tmp_path / "cut", files)
    with pytest.raises(UserError, match="data_batch_2.bin has 12,291 bytes"):
        cifar.find(str(folder)).read()
    files = fabricated.records(MADE)
    files["test_batch.bin"] = b"\x0a" + files["test_batch.bin"][1:]
    folder = fabricated.write_folder(tmp_path / "label", files)
    with pytest.raises(UserError, match="test has a label 10"):
        cifar.find(str(folder)).read()


def test_a_missing_file_is_named(tmp_path):
    folder = write_form("python", tmp_path)
    (folder / "data_batch_4").unlink()
    with pytest.raises(UserError, match="data_batch_4 is missing"):
        cifar.find(str(folder))
    files = fabricated.records(MADE)
    del files["test_batch.bin"]
    tar = fabricated.write_tar(tmp_path / "cifar-10.tar.gz", files)
    with pytest.raises(UserError, match="holds no file test_batch.bin"):
        cifar.find(str(tar)).read()


def test_what_is_there_is_said(tmp_path):
    with pytest.raises(UserError, match="holds no CIFAR-10 .in it: nothing"):
        cifar.find(str(tmp_path / "nowhere"))
    (tmp_path / "data_batch_one").touch()
    with pytest.raises(UserError, match="in it: data_batch_one.: name a file, or"):
        cifar.find(str(tmp_path))
    for name in ("a", "b"):
        write_form("binary", tmp_path / name)
    with pytest.raises(UserError, match="holds CIFAR-10 2 times"):
        cifar.find(str(tmp_path))


@pytest.mark.parametrize(
    "damage", [lambda tar: tar[: len(tar) // 2], lambda tar: b"<!DOCTYPE html>"]
)
def test_a_damaged_tar_is_one_line(damage, tmp_path):
    path = write_form("python.tar.gz", tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="cannot be read to its end") as error:
        cifar.find(str(path)).read()
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_damaged_parquet_is_named(tmp_path):
    import pyarrow
    from pyarrow import parquet

    folder = write_form("parquet", tmp_path)
    path = folder / "test-00000-of-00001.parquet"
    parquet.write_table(pyarrow.table({"image": [b""], "label": [1]}), path)
    with pytest.raises(UserError, match="test-.*columns img and label"):
        cifar.find(str(folder)).read()
    parquet.write_table(pyarrow.table({"img": [b""], "label": [1]}), path)
    with pytest.raises(UserError, match="test-.*columns img and label"):
        cifar.find(str(folder)).read()
    parquet.write_table(pyarrow.table({"img": [{"bytes": b"GIF"}], "label": [1]}), path)
    with pytest.raises(UserError, match="test, image 0: it is no image"):
        cifar.find(str(folder)).read()
    for label in (256, -1, None, "cat"):
        rows = {"img": [{"bytes": b"GIF"}], "label": [label]}
        parquet.write_table(pyarrow.table(rows), path)
        with pytest.raises(UserError, match="test-.*columns img and label"):
            cifar.find(str(path)).read()
    path.write_bytes(b"PAR1")
    with pytest.raises(UserError, match="test-.*cannot be read as parquet"):
        cifar.find(str(folder)).read()


def test_damaged_tfds_is_named(tmp_path):
    folder = write_form("tfds", tmp_path)
    (folder / "dataset_info.json").unlink()
    with pytest.raises(UserError, match="3.0.2 cannot be read as cifar10 of tfds"):
        cifar.find(str(tmp_path)).read()


def test_official_sizes_are_held_against_what_is_known(monkeypatch, tmp_path):
    values = dict(zip(fabricated.BATCHES, (61, 62, 123, 184, 184, 0), strict=True))
    made = {
        name: (np.full((20, 3, 32, 32), value, np.uint8), np.arange(20) % 10)
        for name, value in values.items()
    }
    monkeypatch.setattr(cifar, "SIZES", {"train": 100, "test": 20})

    def read(name):
        folder = fabricated.write_folder(tmp_path / name, fabricated.records(made))
        return cifar.find(str(folder)).read()

    with pytest.raises(UserError, match="standard deviation .* is 54.78, not 61.0"):
        read("deviation")
    for i, value in enumerate((50, 60, 122, 183, 198)):
        made[fabricated.BATCHES[i]][0][:] = value
    assert len(read("right")["train"][1]) == 100
    made["data_batch_1"][0][:] = 55
    with pytest.raises(UserError, match="mean .* is 123.60, not 122.6"):
        read("mean")
    made["data_batch_1"][0][:] = 50
    made["test_batch"][1][0] = 5
    with pytest.raises(UserError, match=r"test has \[1, 2, 2, 2, 2, 3,.* not 2 of"):
        read("classes")
