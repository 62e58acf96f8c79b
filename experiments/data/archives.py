"""Files that people have: packed or not, and which version of them."""

import hashlib
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from experiments.data.progress import counter
from experiments.errors import UserError

_MB = 1_000_000


def members(
    tar: Path,
    wanted: Callable[[str], bool],
    read: Callable[[str, IO[bytes]], Any] = lambda name, file: file.read(),
) -> Iterator[tuple[str, Any]]:
    """Yield name and content of the wanted files of a tar, packed in whatever way.

    It is read once from its beginning to its end; nothing is unpacked to disk. `read`
    makes something else of a name and an open file.

    Raises UserError if it is no tar, or is cut short.
    """
    try:
        with (
            open(tar, "rb") as raw,
            tarfile.open(fileobj=raw, mode="r|*") as archive,
        ):
            total = -(-tar.stat().st_size // _MB)
            report = counter(f"reading {tar.name}", total, "MB")
            for member in archive:
                report(min(raw.tell() // _MB, total - 1))
                if member.isfile() and wanted(member.name):
                    file = archive.extractfile(member)
                    assert file is not None
                    yield member.name, read(member.name, file)
            report(total)
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise UserError(
            f"{tar} cannot be read to its end as a tar ({error or 'it is cut short'}): "
            "its download was not complete, or it is something else; fetch it again"
        ) from error


def fingerprint(files: Iterable[Path]) -> str:
    """Return a name for these files that changes when they are written to."""
    facts = []
    for path in files:
        stat = path.stat()
        facts.append((str(path.resolve()), stat.st_size, stat.st_mtime_ns))
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def listing(folder: Path) -> str:
    """Return the names in a folder, for a message."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    more = ", ..." if len(names) > 10 else ""
    return f"in it: {', '.join(names[:10]) or 'nothing'}{more}"
