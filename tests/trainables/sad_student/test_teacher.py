"""What a teacher said is kept: asked for once, and again where the file is damaged."""

from __future__ import annotations

from pathlib import Path

from trainables.sad_student.teacher import cached, named, numbers


def test_a_damaged_file_of_the_cache_is_made_again(tmp_path: Path) -> None:
    asked = []

    def make() -> object:
        asked.append(1)
        return numbers({"success_rate": 0.5})

    for _ in range(2):
        assert cached(tmp_path, "said", make, named) == {"success_rate": 0.5}
    assert len(asked) == 1
    file = tmp_path / "said.parquet"
    for damaged in (b"", file.read_bytes()[:-20]):
        file.write_bytes(damaged)
        assert cached(tmp_path, "said", make, named) == {"success_rate": 0.5}
    assert len(asked) == 3
