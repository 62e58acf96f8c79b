"""Pathfinder in the files of Long Range Arena's archive, packed or not.

    pathfinder{32,64,128,256}/curv_.../imgs/<batch>/sample_<n>.png
    pathfinder{32,64,128,256}/curv_.../metadata/<batch>.npy

A line of the metadata is an image: its folder, its name, its number, its label, and
more. Despite their name they are text in the archive; the program that drew the images
writes arrays of numpy, which read alike. Images are in the order of the batches'
numbers, then of the lines.

The archive holds `pathfinder128` twice: inside `lra_release/lra_release`, where the
other resolutions are and published work reads, and one level up. Users have had models
at chance on it (google-research/long-range-arena#38).
"""

import functools
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from experiments.data import archives, images
from experiments.data.progress import counter
from experiments.data.rows import Rows
from experiments.data.workers import N_WORKERS, in_processes
from experiments.errors import UserError

FOLDERS = {
    6: "curv_baseline",
    9: "curv_contour_length_9",
    14: "curv_contour_length_14",
}
"""The folder of each length of a contour, in dashes."""

_OUTER = ("lra_release", "pathfinder128")  # the end of the path of the other copy
_INNER = ("lra_release", *_OUTER)
_RESOLUTION = re.compile(r"pathfinder\d+")
_TARS = ("lra_release*gz", "lra_release*.tar", "pathfinder*.tar*")
_MAX_EMPTY = 10_000  # of so many images one may be an empty file
_CHUNK = 2**22  # pixels that a process decodes at once
_NEXT_STEP = "get the archive again, or leave data.source empty to draw the images"


class Place(NamedTuple):
    """Where the bytes of an image lie, and what to call it in a message."""

    name: str
    path: Path
    offset: int
    size: int


@dataclass(frozen=True)
class Found:
    """A tar, or the folder of one resolution, and what is wanted of it."""

    path: Path
    resolution: int
    contour_length: int

    def files(self) -> list[Path]:
        """Return the files that tell one version of the images from another."""
        if self.path.is_file():
            return [self.path]
        return sorted((self.path / FOLDERS[self.contour_length]).glob("metadata/*"))

    def read(self, scratch: Path, n_workers: int = N_WORKERS) -> tuple[Rows, int]:
        """Return the images, rows of uint8 pixels, and how many files were empty.

        Args:
          scratch: a folder for files of the size of the images, which the rows read as
            long as they live.
          n_workers: processes that decode.

        Raises UserError, naming the file, if one is damaged or missing.
        """
        scratch.mkdir(parents=True, exist_ok=True)
        if self.path.is_file():
            metadata, places = _read_tar(self, scratch / "encoded")
        else:
            metadata, places = _read_folder(self)
        listed, labels = [], []
        for name, label in _entries(metadata):
            place = places(name)
            if place is None:
                raise UserError(
                    f"{self.path} has no image {name}, which its metadata lists: "
                    f"{_NEXT_STEP}"
                )
            listed.append(place)
            labels.append(label)
        full = np.array([place.size > 0 for place in listed])
        n_empty = int(np.sum(~full))
        if n_empty > max(1, len(listed) // _MAX_EMPTY) or n_empty == len(listed):
            first = listed[int(np.argmin(full))]
            raise UserError(
                f"{n_empty:,} of {len(listed):,} images are empty files, such as "
                f"{first.name}: {_NEXT_STEP}"
            )
        kept = [place for place in listed if place.size]
        pixels = _decode(kept, self.resolution, scratch / "pixels", n_workers)
        return Rows.table(pixels, np.array(labels, np.uint8)[full]), n_empty


def find(source: str, resolution: int, contour_length: int) -> Found:
    """Return what holds these images at `source`, or up to three folders below it.

    Raises UserError, saying what is there, if nothing does, or several things do.
    """
    path = Path(source).expanduser().absolute()  # its folders tell the copies apart
    name = f"pathfinder{resolution}"
    if path.is_file() or path.name == name:
        return Found(path, resolution, contour_length)
    below = ["", "*/", "*/*/"]
    folders = [
        folder
        for parents in below
        for folder in sorted(path.glob(parents + name))
        if folder.is_dir()
    ]
    inner = [folder for folder in folders if not _is_outer(folder.parts)]
    tars = [
        tar for parents in below for end in _TARS for tar in path.glob(parents + end)
    ]
    found = inner or [tar for tar in tars if tar.is_file()]
    if len(found) == 1:
        return Found(found[0], resolution, contour_length)
    if found:
        raise UserError(
            f"data.source={source} holds Pathfinder {len(found)} times, in "
            f"{', '.join(map(str, found))}: name one of these"
        )
    if folders:
        raise UserError(_only_outer(str(folders[0])))
    raise UserError(
        f"data.source={source} holds no folder {name} ({archives.listing(path)}): name "
        f"lra_release.gz, or a folder with {name}/{FOLDERS[contour_length]}, or leave "
        "data.source empty to draw the images"
    )


def _is_outer(parts: Sequence[str]) -> bool:
    return tuple(parts[-2:]) == _OUTER and tuple(parts[-3:]) != _INNER


def _only_outer(where: str) -> str:
    return (
        f"{where} is the outer of two copies in Long Range Arena's archive, and "
        f"published work reads the inner one: unpack {'/'.join(_INNER)} and name that; "
        "or name the outer folder itself as data.source, if it is wanted"
    )


Contents = dict[str, bytes]  # of files, by path below the folder of a contour length
Places = Callable[[str], Place | None]  # of an image by that path, if it is there


def _read_folder(found: Found) -> tuple[Contents, Places]:
    folder = found.path / FOLDERS[found.contour_length]
    metadata = {str(path): path.read_bytes() for path in found.files()}
    if not metadata:
        raise UserError(
            f"{folder} has no metadata ({archives.listing(found.path)}): {_NEXT_STEP}"
        )

    def place(name: str) -> Place | None:
        path = folder / name
        if not path.is_file():
            return None
        return Place(str(path), path, 0, path.stat().st_size)

    return metadata, place


def _read_tar(found: Found, encoded: Path) -> tuple[Contents, Places]:
    """Read a tar once, and keep the wanted images, as they are, in one file."""
    wanted = (f"pathfinder{found.resolution}", FOLDERS[found.contour_length])
    seen: set[tuple[str, ...]] = set()  # folders of contour lengths

    def folder_of(name: str) -> tuple[str, ...]:
        """Return the path of the folder of a contour length, or nothing."""
        parts = PurePosixPath(name).parts
        for i, part in enumerate(parts[:-2]):
            if _RESOLUTION.fullmatch(part):
                return parts[: i + 2]
        return ()

    def is_wanted(name: str) -> bool:
        folder = folder_of(name)
        seen.add(folder)
        return folder[-2:] == wanted and not _is_outer(folder[:-1])

    metadata: Contents = {}
    places: dict[str, Place] = {}
    homes = set()
    offset = 0
    with open(encoded, "wb") as out:
        for name, content in archives.members(found.path, is_wanted):
            home = folder_of(name)
            homes.add(home)
            inside = PurePosixPath(*PurePosixPath(name).parts[len(home) :])
            where = f"{found.path}, {name}"
            if inside.parts[0] == "metadata":
                metadata[where] = content
            else:
                places[str(inside)] = Place(where, encoded, offset, len(content))
                offset += out.write(content)
    if len(homes) > 1:
        several = ", ".join(sorted("/".join(home) for home in homes))
        raise UserError(f"{found.path} holds {several}: unpack it and name one of them")
    if not metadata:
        there = sorted("/".join(folder) for folder in seen if folder)
        if any(f[-2:] == wanted for f in seen):
            raise UserError(_only_outer(f"{found.path}, {'/'.join(_OUTER)}"))
        raise UserError(
            f"{found.path} holds no metadata of {'/'.join(wanted)} (in it: "
            f"{', '.join(there[:10]) or 'nothing of Pathfinder'}): {_NEXT_STEP}"
        )

    return metadata, places.get


def _entries(metadata: Contents) -> Iterator[tuple[str, int]]:
    """Yield the paths and the labels of all images, in their order."""
    for file in _by_number(metadata):
        try:
            yield from _parse(metadata[file])
        except ValueError as error:
            raise UserError(
                f"{file} is no metadata of Pathfinder: {error}: {_NEXT_STEP}"
            ) from error


def _by_number(files: Iterable[str]) -> list[str]:
    def number(file: str) -> int:
        stem = PurePosixPath(file).stem
        if not stem.isdecimal():
            raise UserError(f"{file} is no metadata: its name is not <number>.npy")
        return int(stem)

    return sorted(files, key=number)


def _parse(content: bytes) -> list[tuple[str, int]]:
    """Return path and label of each line; ValueError says what is wrong."""
    if content.startswith(b"\x93NUMPY"):
        table = np.load(io.BytesIO(content), allow_pickle=False)
        if table.ndim != 2:
            raise ValueError(f"its shape is {table.shape}, not (images, columns)")
        lines = table.astype(str).tolist()
    else:
        lines = [line.split() for line in content.decode().splitlines()]
    entries = []
    for i, line in enumerate(lines, start=1):
        if not line:
            continue
        if len(line) < 4 or line[3] not in ("0", "1"):
            raise ValueError(
                f"line {i} has no label 0 or 1 in its fourth column: {' '.join(line)!r}"
            )
        folder, name, _, label, *_ = line
        entries.append((f"{folder}/{name}", int(label)))
    if not entries:
        raise ValueError("it has no lines")
    return entries


def _decode(
    places: Sequence[Place], resolution: int, out: Path, n_workers: int
) -> np.ndarray:
    """Decode all images into a file; return it as an array (n, pixels)."""
    n_images = max(1, _CHUNK // resolution**2)
    chunks = [places[i : i + n_images] for i in range(0, len(places), n_images)]
    decode = functools.partial(_decode_chunk, resolution)
    report = counter("decoding", len(places))
    done = 0
    with open(out, "wb") as file:
        for pixels in in_processes(decode, chunks, n_workers):
            file.write(pixels)
            done += len(pixels) // resolution**2
            report(done)
    return np.memmap(out, np.uint8, "r", shape=(len(places), resolution**2))


def _decode_chunk(resolution: int, places: Sequence[Place]) -> bytes:
    return b"".join(_decode_one(resolution, place) for place in places)


def _decode_one(resolution: int, place: Place) -> bytes:
    with open(place.path, "rb") as file:
        file.seek(place.offset)
        content = file.read(place.size)
    try:
        return images.decode(content, "L", resolution).tobytes()
    except ValueError as error:
        raise UserError(f"{place.name}: {error}: {_NEXT_STEP}") from error
