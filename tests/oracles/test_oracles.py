from __future__ import annotations

import numpy as np
import pytest

from tests.oracles import DATA, oracle_files


@pytest.fixture(autouse=True)
def only_the_committed_files(monkeypatch) -> None:
    monkeypatch.delenv("COUNTERPOISE_ORACLES", raising=False)


def test_files_are_found_by_number() -> None:
    assert [param.id for param in oracle_files("24")] == ["24-sam-gs-k2", "24-sam-gs-k4"]


def test_an_unknown_number_is_an_error() -> None:
    with pytest.raises(FileNotFoundError, match=r"no 99-\*\.npz in"):
        oracle_files("99")


def test_a_folder_of_ones_own_is_searched_too_and_wins(tmp_path, monkeypatch) -> None:
    np.savez(tmp_path / "24-sam-gs-k2.npz", x=1)
    np.savez(tmp_path / "24-mine.npz", x=1)
    monkeypatch.setenv("COUNTERPOISE_ORACLES", str(tmp_path))
    assert {param.id: param.values[0].parent for param in oracle_files("24")} == {
        "24-sam-gs-k2": tmp_path,
        "24-sam-gs-k4": DATA,
        "24-mine": tmp_path,
    }


def test_every_file_can_be_read_without_pickle() -> None:
    names = sorted(path.name for path in DATA.glob("*.npz"))
    assert len(names) >= 40
    for name in names:
        with np.load(DATA / name, allow_pickle=False) as numbers:
            assert len([numbers[key] for key in numbers.files]) > 0, name
