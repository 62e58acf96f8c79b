"""Documents of bytes from local text files: one file, one document."""

import hashlib
import sysconfig
from pathlib import Path
from typing import NamedTuple

# Of the standard library: not what others installed, and no tests, which are not
# everywhere.
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test"}


class Document(NamedTuple):
    """The bytes of a file, and its path relative to the folder that was read."""

    name: str
    content: bytes

    def split(self) -> str:
        """The split that holds it: 5 % validation, 5 % test, by a hash of its name."""
        draw = hashlib.sha256(self.name.encode()).digest()[0] / 256
        return "validation" if draw < 0.05 else "test" if draw < 0.1 else "train"


def standard_library() -> list[Document]:
    """Return the sources of Python's standard library."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = [
        path
        for path in sorted(root.rglob("*.py"))
        if not _LEFT_OUT & set(path.relative_to(root).parts[:-1])
    ]
    return [
        Document(path.relative_to(root).as_posix(), path.read_bytes()) for path in paths
    ]


def read_documents(path: str) -> list[Document]:
    """Return the files at `path`, a file or a folder that is searched to its bottom.

    Hidden files and empty ones are left out.

    Raises:
      ValueError: there is no such path, no text in it, or a file is not UTF-8.
    """
    root = Path(path).expanduser()
    if root.is_file():
        files = [root]
    elif root.is_dir():
        files = [
            file
            for file in sorted(root.rglob("*"))
            if file.is_file()
            and not any(part[0] == "." for part in file.relative_to(root).parts)
        ]
    else:
        raise ValueError(f"path={path!r} is neither a file nor a folder")
    documents = []
    for file in files:
        name = file.name if file == root else file.relative_to(root).as_posix()
        content = file.read_bytes()
        try:
            content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{file} is not UTF-8 text: byte {error.start} is "
                f"0x{content[error.start]:02x}; convert it or take it out of {path!r}"
            ) from error
        if content:
            documents.append(Document(name, content))
    if not documents:
        raise ValueError(f"path={path!r} holds no text")
    return documents


def parts_of(document: Document) -> dict[str, Document]:
    """Cut one document into the three splits: its last 5 % and the 5 % before those."""
    content = document.content
    first, second = int(0.9 * len(content)), int(0.95 * len(content))
    return {
        "train": document._replace(content=content[:first]),
        "validation": document._replace(content=content[first:second]),
        "test": document._replace(content=content[second:]),
    }
