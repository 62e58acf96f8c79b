"""A small archive of Pathfinder, byte for byte in the official layout."""

import io

import numpy as np

from tests.experiments.data.fabricated_cifar import png, write_tar

BATCHES = (0, 2, 10)
PER_BATCH = 4
HARD = "curv_contour_length_14"


def picture(resolution, seed):
    return np.random.default_rng(seed).integers(0, 256, (resolution,) * 2, np.uint8)


def label(batch, i):
    return (batch + 3 * i) % 5 % 2


def rows(batch, per_batch=PER_BATCH):
    """Return the eleven columns of each image of a batch."""
    return [
        [
            f"imgs/{batch}",
            f"sample_{i}.png",
            str(i),
            str(label(batch, i)),
            "1.0",
            "14",
            "4",
            "2",
            "0.5",
            "1",
            "1",
        ]
        for i in range(per_batch)
    ]


def as_text(rows):
    return "".join(" ".join(row) + "\n" for row in rows).encode()


def as_numpy(rows):
    file = io.BytesIO()
    np.save(file, np.array(rows))
    return file.getvalue()


def files(resolution, *, form=as_text, folder=HARD, seed=0):
    """Return path below the archive's folder and content of each file."""
    found = {}
    home = f"pathfinder{resolution}/{folder}"
    for batch in BATCHES:
        for i in range(PER_BATCH):
            content = png(picture(resolution, 1_000 * seed + 10 * batch + i))
            found[f"{home}/imgs/{batch}/sample_{i}.png"] = content
        found[f"{home}/metadata/{batch}.npy"] = form(rows(batch))
    return found


def pixels(resolution, seed=0):
    """Return the images (n, pixels) in their order, and the labels."""
    order = [(batch, i) for batch in BATCHES for i in range(PER_BATCH)]
    images = [picture(resolution, 1_000 * seed + 10 * b + i).ravel() for b, i in order]
    return np.stack(images), np.array([label(*which) for which in order], np.uint8)


def write_tree(root, content):
    for name, data in content.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def write_archive(path, content, mode="w:gz"):
    """Write a tar with images before their metadata, and batches in no order."""
    names = sorted(content, reverse=True)
    return write_tar(path, {name: content[name] for name in names}, mode)
