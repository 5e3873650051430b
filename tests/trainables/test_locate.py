"""Where a task's file is looked for, and what a download must be to be believed."""

import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from trainables.data import locate
from trainables.data.cache import cache_home
from trainables.data.locate import data_home, matbench_file
from trainables.data.tasks import TASKS
from trainables.errors import UserError

TASK = TASKS["matbench_jdft2d"]
NAME = "matbench_jdft2d.json.gz"
URL = f"https://ml.materialsproject.org/projects/{NAME}"
CONTENT = b"a Matbench table" * 50_000


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of this test only, CONTENT as the published file, and a network that is never there."""
    for variable in ("MATMINER_DATA", "CRYSTALTUNE_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "matminer" / "datasets").mkdir(parents=True)
    (tmp_path / "matminer" / "__init__.py").write_text("raise AssertionError('matminer was imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "matminer"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(locate._SHA256, TASK.name, hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(requests, "get", without_network)


def without_network(url: str, **options: Any) -> Any:
    raise requests.ConnectionError("no route to host\nand a second line")


class Reply:
    """What requests.get would give."""

    def __init__(self, content: bytes, status: int = 200, breaks: bool = False) -> None:
        self.content, self.status, self.breaks = content, status, breaks
        self.headers = {"Content-Length": str(len(content))}

    def __enter__(self) -> "Reply":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def raise_for_status(self) -> None:
        if self.status != 200:
            raise requests.HTTPError(f"{self.status}")

    def iter_content(self, size: int) -> Iterator[bytes]:
        for begin in range(0, len(self.content), size):
            yield self.content[begin : begin + size]
        if self.breaks:
            raise requests.exceptions.ChunkedEncodingError("connection broken")


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Callable[[Reply], list[str]]:
    """Make requests.get answer, and list what it was asked for."""

    def answers(reply: Reply) -> list[str]:
        asked: list[str] = []

        def get(url: str, **options: Any) -> Reply:
            assert options["timeout"] > 0
            asked.append(url)
            return reply

        monkeypatch.setattr(requests, "get", get)
        return asked

    return answers


def refusal() -> str:
    with pytest.raises(UserError) as caught:
        matbench_file(TASK)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_matminer_data_is_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATMINER_DATA", str(tmp_path / "mine"))
    assert data_home() == tmp_path / "mine"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / NAME).write_bytes(b"whatever bytes these are")
    assert matbench_file(TASK) == tmp_path / "mine" / NAME


def test_an_empty_variable_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATMINER_DATA", "")
    monkeypatch.setenv("CRYSTALTUNE_CACHE", "")
    assert data_home() == tmp_path / "cache" / "crystaltune" / "matbench"


def test_the_cache_folder_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRYSTALTUNE_CACHE", str(tmp_path / "chosen"))
    assert cache_home() == tmp_path / "chosen"
    assert data_home() == tmp_path / "chosen" / "matbench"
    monkeypatch.setenv("CRYSTALTUNE_CACHE", "~/chosen")
    assert cache_home() == Path.home() / "chosen"


def test_a_file_in_matminers_own_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "matminer" / "datasets" / NAME).write_bytes(b"x")
    assert matbench_file(TASK) == tmp_path / "matminer" / "datasets" / NAME


def test_ones_own_folder_goes_before_matminers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "matminer" / "datasets" / NAME).write_bytes(b"x")
    monkeypatch.setenv("MATMINER_DATA", str(tmp_path))
    (tmp_path / NAME).write_bytes(b"y")
    assert matbench_file(TASK) == tmp_path / NAME


def test_without_file_and_network_one_line_says_where_to_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.setenv("MATMINER_DATA", str(tmp_path / "mine"))
    message = refusal()
    assert str(tmp_path / "mine" / NAME) in message
    assert URL in message
    assert "ConnectionError" in message
    assert "MATMINER_DATA" in message
    assert not (tmp_path / "mine" / NAME).exists()


def test_a_download_with_the_listed_hash_is_kept_and_not_fetched_again(
    network: Callable[[Reply], list[str]],
) -> None:
    asked = network(Reply(CONTENT))
    path = matbench_file(TASK)
    assert path == data_home() / NAME
    assert path.read_bytes() == CONTENT
    assert matbench_file(TASK) == path
    assert asked == [URL]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(CONTENT[:-1] + b"?"), "hash is not the published one"),
        (Reply(CONTENT[:-1000]), "hash is not the published one"),
        (Reply(b"<html>Sign in</html>"), "hash is not the published one"),
        (Reply(CONTENT, status=404), "HTTPError"),
        (Reply(CONTENT[:300_000], breaks=True), "ChunkedEncodingError"),
    ],
    ids=["changed", "shorter", "another page", "not found", "broken off"],
)
def test_a_wrong_download_is_refused_and_leaves_nothing_behind(
    reply: Reply, reason: str, network: Callable[[Reply], list[str]]
) -> None:
    network(reply)
    message = refusal()
    assert reason in message
    assert str(data_home() / NAME) in message
    assert list(data_home().iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: Callable[[Reply], list[str]]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.delenv("MATMINER_DATA", raising=False)
    monkeypatch.setenv("CRYSTALTUNE_CACHE", str(tmp_path / "file" / "below"))
    network(Reply(CONTENT))
    assert "could not be downloaded (NotADirectoryError)" in refusal()


@pytest.mark.parametrize(("name", "what"), [("missing", "does not exist"), ("file", "is not a folder")])
def test_a_mistyped_folder_of_data_is_told_and_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: Callable[[Reply], list[str]], name: str, what: str
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("MATMINER_DATA", str(tmp_path / name))
    asked = network(Reply(CONTENT))
    assert f"MATMINER_DATA={tmp_path / name} {what}" in refusal()
    assert not (tmp_path / "missing").exists()
    assert not asked


def test_a_download_tells_how_far_it_is(network: Callable[[Reply], list[str]]) -> None:
    class Counter:
        total, seen = 0.0, 0.0

        def stage(self, name: str, total: float | None, unit: str) -> "Counter":
            self.total = total or 0.0
            return self

        def __enter__(self) -> "Counter":
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def advance(self, amount: float, note: str = "") -> None:
            self.seen += amount

    network(Reply(CONTENT))
    counter = Counter()
    matbench_file(TASK, counter)  # type: ignore[arg-type]
    assert counter.seen == counter.total == len(CONTENT)


def test_links_and_hashes_are_those_that_matminer_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    from matminer.datasets.utils import _load_dataset_dict

    listed = {name: (entry["url"], entry["hash"]) for name, entry in _load_dataset_dict().items() if name in TASKS}
    assert listed == {name: (f"{locate._DOWNLOADS}/{name}.json.gz", locate._SHA256[name]) for name in TASKS}


def test_where_matminer_is_not_installed_its_folder_is_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "find_spec", lambda name: None)
    assert URL in refusal()
