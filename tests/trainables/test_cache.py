"""Where the cache lies: in the user's folders, or among the temporary files where there is no home."""

import tempfile
from pathlib import Path

import pytest

from trainables.data.cache import cache_home, cache_note


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CRYSTALTUNE_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)


def test_a_home_has_it_in_its_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_home() == tmp_path / ".cache" / "crystaltune"
    assert cache_note() == ""


def test_the_variables_choose_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_home() == tmp_path / "xdg" / "crystaltune"
    monkeypatch.setenv("CRYSTALTUNE_CACHE", str(tmp_path / "own"))
    assert cache_home() == tmp_path / "own"


def test_a_home_that_does_not_exist_is_not_made_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_home().parent == Path(tempfile.gettempdir()).resolve()
    assert "nobody/.cache cannot be written: graphs are kept in" in cache_note()
    assert "CRYSTALTUNE_CACHE" in cache_note()
    assert not (tmp_path / "nobody").exists()


def test_a_user_without_any_home_has_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    assert cache_home().parent == Path(tempfile.gettempdir()).resolve()
    assert cache_note().startswith("no home folder is known")
