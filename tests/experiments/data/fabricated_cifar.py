"""CIFAR-10's files, byte for byte, of random images."""

import io
import pickle
import struct
import tarfile

import numpy as np
from PIL import Image

PER_BATCH = 4
BATCHES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]


def batches(seed=0, per_batch=PER_BATCH):
    """Return planes (n, 3, 32, 32) and labels (n,) of each batch."""
    rng = np.random.default_rng(seed)
    return {
        name: (
            rng.integers(0, 256, (per_batch, 3, 32, 32), np.uint8),
            rng.integers(0, 10, per_batch),
        )
        for name in BATCHES
    }


def by_split(made):
    """Return pixels (n, 32, 32, 3) and labels (n,) of "train" and "test"."""
    names = {"train": BATCHES[:5], "test": BATCHES[5:]}
    return {
        split: (
            np.concatenate([made[name][0] for name in names]).transpose(0, 2, 3, 1),
            np.concatenate([made[name][1] for name in names]),
        )
        for split, names in names.items()
    }


class Python2Pickler(pickle._Pickler):
    """Writes bytes as a `str` of Python 2, as the official files have them."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_str_of_python_2(self, content):
        short = len(content) < 256
        self.write(b"U" + bytes([len(content)]) if short else b"T")
        self.write(content if short else struct.pack("<i", len(content)) + content)
        self.memoize(content)

    dispatch[bytes] = save_str_of_python_2


def pickled(value):
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"numpy._core.", b"numpy.core.")


def pickles(made):
    """Return the name and the content of each file."""
    files = {"batches.meta": pickled({b"num_vis": 3_072})}
    for name, (planes, labels) in made.items():
        batch = {
            b"batch_label": name.encode(),
            b"labels": labels.tolist(),
            b"data": planes.reshape(len(planes), 3_072),
            b"filenames": [b"automobile_s_001227.png"] * len(planes),
        }
        files[name] = pickled(batch)
    return files


def records(made):
    files = {"readme.html": b"<html></html>"}
    for name, (planes, labels) in made.items():
        rows = np.concatenate([labels[:, None], planes.reshape(len(planes), -1)], 1)
        files[f"{name}.bin"] = rows.astype(np.uint8).tobytes()
    return files


def write_folder(folder, files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def write_tar(path, files, mode="w:gz"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")
    return file.getvalue()


def write_parquet(folder, made):
    import pyarrow
    from pyarrow import parquet

    folder.mkdir(parents=True)
    for split, (pixels, labels) in by_split(made).items():
        rows = [{"bytes": png(image), "path": None} for image in pixels]
        kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
        table = pyarrow.table({"img": pyarrow.array(rows, kind), "label": labels})
        parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    return folder


def write_tfds(folder, made):
    """Write what tfds prepares with file_format="array_record"."""
    import tensorflow_datasets as tfds

    folder.mkdir(parents=True)
    features = {
        "id": tfds.features.Text(),
        "image": tfds.features.Image(shape=(32, 32, 3)),
        "label": tfds.features.ClassLabel(num_classes=10),
    }
    info = tfds.core.DatasetInfo(
        builder=tfds.core.dataset_info.DatasetIdentity(
            name="cifar10",
            version=tfds.core.Version("3.0.2"),
            data_dir=str(folder),
            module_name="tensorflow_datasets.image_classification.cifar",
        ),
        features=tfds.features.FeaturesDict(features),
    )
    writer = tfds.core.SequentialWriter(info, 10**6, file_format="array_record")
    writer.initialize_splits(["train", "test"])
    for split, (pixels, labels) in by_split(made).items():
        examples = [
            {"id": f"{split}_{i}", "image": io.BytesIO(png(image)), "label": label}
            for i, (image, label) in enumerate(zip(pixels, labels, strict=True))
        ]
        writer.add_examples({split: examples})
    writer.close_all()
    return folder
