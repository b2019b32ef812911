"""Whole files in a folder, on a local disk, behind fsspec and on S3: complete or absent, never half."""

from __future__ import annotations

import os
import pickle
import uuid
from pathlib import Path

import boto3
import pytest

from trainables.common.folder import Folder


@pytest.fixture(params=["local", "file", "memory", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "s3":
        return Folder(f"{request.getfixturevalue('bucket')}/{uuid.uuid4().hex}")
    return Folder(
        {"local": str(tmp_path), "file": tmp_path.as_uri(), "memory": f"memory://{uuid.uuid4().hex}"}[request.param]
    )


def test_a_file_is_written_replaced_read_and_deleted(folder: Folder) -> None:
    assert folder.read("a/b.bin") is None
    folder.write("a/b.bin", b"one")
    folder.write("a/b.bin", b"")
    assert folder.read("a/b.bin") == b""
    folder.write("a/b.bin", b"two")
    assert folder.read("a/b.bin") == b"two" == folder.sub("a").read("b.bin")
    folder.delete("a/b.bin")
    folder.delete("a/b.bin")
    assert folder.read("a/b.bin") is None


def test_a_folder_inside_shares_the_connection_and_is_the_same_as_one_that_is_opened(folder: Folder) -> None:
    inside = folder.sub("a/b")
    again = Folder(inside.location)
    assert inside.fs is folder.fs and (inside.root, inside.location) == (again.root, again.location)


def test_a_folder_is_not_a_file(folder: Folder) -> None:
    folder.write("a/b", b"")
    assert folder.read("a") is None


def test_names_are_the_files_directly_inside(folder: Folder) -> None:
    assert folder.names() == [] == folder.sub("missing").names()
    for name in ("b.parquet", "a.parquet", "c.txt", ".half.parquet", "sub/d.parquet"):
        folder.write(name, b"x")
    assert folder.names() == ["a.parquet", "b.parquet", "c.txt"]
    assert folder.names(".parquet") == ["a.parquet", "b.parquet"]


def test_a_suffix_does_not_compress(folder: Folder) -> None:
    folder.write("a.gz", b"plain")
    assert folder.read("a.gz") == b"plain"


def test_a_pickled_folder_reaches_the_same_files(folder: Folder) -> None:
    folder.write("a", b"x")
    copy = pickle.loads(pickle.dumps(folder))
    assert copy.read("a") == b"x" and copy.location == folder.location and copy.is_local == folder.is_local


def test_a_directory_is_uploaded_without_its_subdirectories(folder: Folder, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("a", "b"):
        (source / name).write_text(name)
    folder.upload(source, "deep/copy")
    assert folder.sub("deep/copy").names() == ["a", "b"] and folder.read("deep/copy/b") == b"b"


def test_a_reader_never_sees_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(tmp_path)
    folder.write("a", b"old")

    def interrupted(source: str, target: str) -> None:
        assert Path(source).read_bytes() == b"new" and target == str(tmp_path / "a")
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        folder.write("a", b"new")
    assert folder.read("a") == b"old" and folder.names() == ["a"]


def test_a_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Folder("results")
    monkeypatch.chdir("/")
    folder.write("a", b"x")
    assert (tmp_path / "results" / "a").read_bytes() == b"x" and folder.is_local


def test_a_folder_that_cannot_be_written_raises_oserror(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        Folder(tmp_path / "file" / "below").write("a", b"x")


def test_options_of_a_uri_hold_for_the_folders_inside(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    folder = Folder(f"{bucket}/with/options/?scheme=http&endpoint_override={endpoint}")
    folder.sub("deeper").write("a", b"x")
    assert folder.root == f"{bucket.removeprefix('s3://')}/with/options" and folder.read("deeper/a") == b"x"
    assert pickle.loads(pickle.dumps(folder.sub("deeper"))).names() == ["a"]


def test_an_object_store_holds_nothing_but_the_files(bucket: str) -> None:
    folder = Folder(f"{bucket}/no/markers")
    folder.write("deep/a", b"x")
    keys = [
        entry["Key"] for entry in boto3.client("s3").list_objects_v2(Bucket=bucket.removeprefix("s3://"))["Contents"]
    ]
    assert keys == ["no/markers/deep/a"]


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="nowhere"):
        Folder("nowhere://bucket/prefix")
