"""What is told of a task's name, its file and its folder before anything is read."""

import gzip
from pathlib import Path

import pytest
from said import refusal

from orchestrator.inputs.source import (
    Source,
    auxiliary_sources,
    check_folder,
    check_source,
    default_folder,
    parse_folds,
)
from trainables.errors import UserError


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.csv"
    path.write_text('id,structure,band_gap\n"a","data_x\nloop_",1.5\n')
    return path


def told(source: Source) -> str:
    return refusal(check_source, source)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("..", "is a path"),
        (".", "is a path"),
        ("my/name", "is a path"),
        ("/tmp/x", "is a path"),
        ("..\\up", "is a path"),
        ("a\nb", "cannot be printed"),
        ("a\x1b[2Jb", "cannot be printed"),
        ("", "is empty"),
        ("  ", "is empty"),
        ("-x", "begins with '-'"),
        ("x" * 101, "101 characters"),
    ],
)
def test_names_that_are_no_plain_names(name: str, part: str, table: Path) -> None:
    for file in (table, None):
        assert part in told(Source(name, file, "band_gap"))


@pytest.mark.parametrize("name", ["my_gaps", "My gaps 2", "a.b", "é", "x" * 100, "glass"])
def test_other_names_are_free_for_a_table(name: str, table: Path) -> None:
    check_source(Source(name, table, "band_gap", "eV/atom", energy=True, limit=3))
    check_source(Source(name, table))


@pytest.mark.parametrize("name", ["jdft2d", "JDFT2D", "matbench_jdft2d", "Sample", "mp-gap"])
def test_known_names_need_no_file(name: str) -> None:
    check_source(Source(name))


def test_an_unknown_name_without_a_file_is_told_the_nearest() -> None:
    assert "did you mean matbench_jdft2d?" in told(Source("jdft2e"))
    assert "classification" in told(Source("mp_is_metal"))


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        (Source("jdft2d", target="y"), ("`target=y", "'exfoliation_en'", "meV/atom")),
        (Source("JDFT2D", unit="eV"), ("`unit=eV", "meV/atom")),
        (Source("mp_gap", energy=True), ("`energy", "'gap pbe'")),
        (Source("sample", target="y", energy=True), ("`target=y", "e_form_synthetic")),
    ],
)
def test_a_known_task_has_its_own_target(source: Source, parts: tuple[str, ...]) -> None:
    for part in (*parts, "`data`"):
        assert part in told(source)


def test_options_that_say_what_a_task_is_anyway_are_no_mistake() -> None:
    check_source(Source("jdft2d", target="exfoliation_en", unit="meV/atom"))
    check_source(Source("mp_e_form", energy=True))


def test_files_that_cannot_be_a_table(table: Path, tmp_path: Path) -> None:
    assert "there is no such file (did you mean" in told(Source("mine", tmp_path / "tabel.csv"))
    assert told(Source("mine", tmp_path / "other")).endswith("there is no such file")
    (tmp_path / "empty").mkdir()
    assert "is a folder without structure files" in told(Source("mine", tmp_path / "empty"))
    assert "matches no file" in told(Source("mine", tmp_path / "*.cif"))
    (tmp_path / "empty.csv").touch()
    assert "is empty" in told(Source("mine", tmp_path / "empty.csv"))
    assert "is not a Matbench table" in told(Source("JDFT2D", table))
    assert "another task name" in told(Source("Sample", table))
    assert "unknown task" in told(Source("matbench_mine", table))
    assert "must be a whole number of at least 1" in told(Source("mine", table, limit=0))


def test_a_target_that_is_no_column_is_told_the_nearest(table: Path, tmp_path: Path) -> None:
    assert "no column 'bandgap' (did you mean 'band_gap'?)" in told(Source("mine", table, "bandgap"))
    assert "but id, structure, band_gap" in told(Source("mine", table, "zzz"))
    zipped = tmp_path / "table.csv.gz"
    zipped.write_bytes(gzip.compress(b"\xef\xbb\xbfid,structure,Y\n"))
    assert "did you mean 'Y'?" in told(Source("mine", zipped, "y"))
    check_source(Source("mine", zipped, "Y"))


def test_headers_that_only_pandas_names_are_left_to_it(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,structure,y,y\n")
    (tmp_path / "b.csv").write_text(",id,structure\n")
    (tmp_path / "c.json").write_text("[]")
    (tmp_path / "d.csv").write_bytes(b"\xff\xfe\x00")
    for name in ("a.csv", "b.csv", "c.json", "d.csv"):
        check_source(Source("mine", tmp_path / name, "y.1"))


def test_auxiliary_tasks_are_checked_by_name_and_file(table: Path) -> None:
    assert list(auxiliary_sources(["MP-gap", f"mine={table}"])) == ["matbench_mp_gap", "mine"]
    for texts, part in (
        (["mp_gap", "MP_GAP"], "given twice"),
        (["mine="], "NAME or NAME=FILE"),
        (["nothing_known"], "unknown task"),
        (["mine=missing.csv"], "no such file"),
        ([f"../x={table}"], "is a path"),
    ):
        with pytest.raises(UserError, match=part):
            auxiliary_sources(texts)


@pytest.mark.parametrize(
    ("task", "folder"),
    [
        ("jdft2d", "runs/jdft2d"),
        ("JDFT2D", "runs/jdft2d"),
        ("matbench_jdft2d", "runs/matbench_jdft2d"),
        ("Matbench-MP-gap", "runs/matbench_mp_gap"),
        ("sample", "runs/sample"),
        ("My-Gaps", "runs/My-Gaps"),
    ],
)
def test_the_default_folder_has_the_tasks_name(task: str, folder: str) -> None:
    assert default_folder("", task) == Path(folder)
    assert default_folder("ablation-", task) == Path(folder).with_name(f"ablation-{Path(folder).name}")


@pytest.mark.parametrize("marker", ["run.json", "study.json", "ablation.json"])
def test_a_folder_of_the_users_own_files_is_no_place_for_results(marker: str, tmp_path: Path) -> None:
    check_folder(tmp_path / "new", marker=marker)
    check_folder(tmp_path, marker=marker)
    for name in (".git", ".DS_Store", "slurm-1.out", "mine.yaml"):
        (tmp_path / name).touch()
    check_folder(tmp_path, marker=marker)
    (tmp_path / "POSCAR").touch()
    with pytest.raises(UserError, match=r"contains other files \(POSCAR\)"):
        check_folder(tmp_path, marker=marker)
    with pytest.raises(UserError, match="is a file"):
        check_folder(tmp_path / "POSCAR", marker=marker)
    (tmp_path / ".lock").write_text("process 1 on host since 2030-01-01 00:00:00\n")  # begun, and stopped at once
    check_folder(tmp_path, marker=marker)
    (tmp_path / ".lock").unlink()
    (tmp_path / marker).touch()
    check_folder(tmp_path, marker=marker)


def test_a_folder_of_another_command_is_refused_by_its_kind(tmp_path: Path) -> None:
    (tmp_path / "study.json").touch()
    (tmp_path / ".lock").write_text("process 1 on host since 2030-01-01 00:00:00\n")
    for marker in ("run.json", "ablation.json"):
        with pytest.raises(UserError, match="already contains a search"):
            check_folder(tmp_path, marker=marker)


@pytest.mark.parametrize(("marker", "left"), [("study.json", "journal.jsonl"), ("ablation.json", "runs/fold0-seed0-a")])
def test_what_was_copied_without_hidden_files_goes_on(marker: str, left: str, tmp_path: Path) -> None:
    (tmp_path / left).mkdir(parents=True)
    check_folder(tmp_path, marker=marker)
    with pytest.raises(UserError, match="contains other files"):
        check_folder(tmp_path, marker="run.json")


@pytest.mark.parametrize("text", ["5", "a", "0-9", "", "3-1", "-1", "0,", "²", "99999999999", "0-99999999999"])
def test_folds_that_do_not_exist_are_one_line(text: str) -> None:
    with pytest.raises(UserError, match="`folds"):
        parse_folds(text)


def test_folds_are_ranges_and_lists() -> None:
    assert parse_folds("0-4") == (0, 1, 2, 3, 4)
    assert parse_folds("3,0-1") == (0, 1, 3)
    assert parse_folds("3, 0-1") == (0, 1, 3)
