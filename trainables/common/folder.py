"""A folder of whole files on a local disk or on anything that pyarrow's file systems or fsspec reach.

Files are written aside, brought to the disk and renamed, so a reader sees a file complete or not at all, even after a
loss of power; object stores give the same by nature, since an upload becomes visible at its end.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from trainables.common.text import parse_json

# of these file systems: they have no folders, and making one costs three requests
OBJECT_STORES = ("s3", "gcs")


class Folder:
    """A folder named by a local path or a URI such as ``s3://bucket/prefix``.

    Args:
        location: Local path (made absolute) or URI; what follows a ``?`` in a URI are options of its file system, as in
            ``s3://bucket/prefix?region=eu-west-1``, and holds for the folders inside as well.

    Attributes:
        fs: The pyarrow file system that reaches it.
        root: Its path within ``fs``.

    Raises:
        OSError, ValueError, ImportError: If no file system handles the location, or its package is not installed.
    """

    def __init__(self, location: str | os.PathLike[str]) -> None:
        text = os.fspath(location)
        if "://" not in text:
            self.fs, self.root = pafs.LocalFileSystem(), str(Path(text).expanduser().absolute())
        else:
            self.fs, self.root = _from_uri(text)
        self.location = text if "://" in text else self.root

    def __reduce__(self) -> tuple[type[Folder], tuple[str]]:
        # file systems hold connections: a copy in another process opens its own
        return Folder, (self.location,)

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, pafs.LocalFileSystem)

    def path(self, name: str) -> str:
        """Return the path within ``fs`` of the file called ``name`` (may contain slashes)."""
        return f"{self.root}/{name}"

    def sub(self, name: str) -> Folder:
        """Return the folder ``name`` inside this one, on the same connection; it need not exist."""
        place, mark, options = self.location.partition("?") if "://" in self.location else (self.location, "", "")
        inside = object.__new__(Folder)
        inside.fs, inside.root = self.fs, f"{self.root.rstrip('/')}/{name}"
        inside.location = f"{place.rstrip('/')}/{name}{mark}{options}"
        return inside

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file, replacing one of the same name. Raises OSError where the folder cannot be written."""
        final = self.path(name)
        if self.fs.type_name not in OBJECT_STORES:
            self.fs.create_dir(final.rsplit("/", 1)[0], recursive=True)
        if not self.is_local:
            with self.fs.open_output_stream(final, compression=None) as stream:
                stream.write(data)
            return
        # a leading dot keeps half-written files out of every Parquet reader
        aside = Path(final).with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            aside.write_bytes(data)
            replace(aside, Path(final))
        except OSError:
            # what a full disk leaves half would keep it full
            aside.unlink(missing_ok=True)
            raise

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, or None where there is none."""
        path = self.path(name)
        if self.fs.get_file_info(path).type != pafs.FileType.File:
            return None
        with self.fs.open_input_stream(path, compression=None) as stream:
            return stream.read()

    def move(self, name: str, new: str) -> None:
        """Rename a file, replacing one that is called ``new``; one that does not exist is no error."""
        if self.fs.get_file_info(self.path(name)).type == pafs.FileType.File:
            self.fs.move(self.path(name), self.path(new))

    def read_json(self, name: str) -> Any:
        """Return what a JSON file says, or None where there is none. Raises InputError where it is no JSON."""
        data = self.read(name)
        return None if data is None else parse_json(data, self.path(name))

    def delete(self, name: str) -> None:
        """Remove a file; one that does not exist is no error."""
        try:
            self.fs.delete_file(self.path(name))
        except FileNotFoundError:
            pass

    def names(self, suffix: str = "") -> list[str]:
        """Return the sorted names of the files directly in this folder ending in ``suffix``, no half-written ones."""
        infos = self.fs.get_file_info(pafs.FileSelector(self.root, allow_not_found=True))
        return sorted(
            i.base_name for i in infos if i.is_file and i.base_name.endswith(suffix) and not i.base_name.startswith(".")
        )

    def folders(self) -> list[str]:
        """Return the sorted names of the folders directly in this one."""
        infos = self.fs.get_file_info(pafs.FileSelector(self.root, allow_not_found=True))
        return sorted(info.base_name for info in infos if info.type == pafs.FileType.Directory)

    def delete_folder(self, name: str) -> None:
        """Remove the folder ``name`` with everything in it; one that does not exist is no error."""
        try:
            self.fs.delete_dir(self.path(name))
        except FileNotFoundError:
            pass

    def absent(self) -> list[str]:
        """Return this folder and those around it that do not exist, innermost first; none in an object store."""
        found, path = [], self.root
        while self.is_local and path and not os.path.lexists(path):
            found.append(path)
            path = os.path.dirname(path)
        return found

    def upload(self, local: Path, name: str) -> None:
        """Copy the files of a local directory (not its sub-directories) into the folder ``name``."""
        for file in sorted(local.iterdir()):
            self.write(f"{name}/{file.name}", file.read_bytes())


def remove_empty(folders: Iterable[str]) -> None:
    """Remove local folders, innermost first, up to one that holds something or does not exist."""
    for folder in folders:
        if not os.path.isdir(folder) or os.listdir(folder):
            return
        os.rmdir(folder)


def replace(aside: Path, final: Path) -> None:
    """Rename a local file or folder to its final name, once all of it is on the disk."""
    for path in (*(p for p in aside.rglob("*") if p.is_file()), aside):
        _to_disk(path)
    os.replace(aside, str(final))
    _to_disk(final.parent)


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # some shared file systems do not let folders be brought to the disk
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


def _from_uri(uri: str) -> tuple[pafs.FileSystem, str]:
    try:
        fs, root = pafs.FileSystem.from_uri(uri)
    except Exception:
        import fsspec

        fsspec_fs, root = fsspec.core.url_to_fs(uri)
        fs = pafs.PyFileSystem(pafs.FSSpecHandler(fsspec_fs))
    return fs, root.rstrip("/")
