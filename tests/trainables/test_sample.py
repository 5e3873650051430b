"""The synthetic sample: deterministic, sound, varied, and rebuilt where its cache is damaged."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from trainables import sample as sample_module
from trainables.crystals import SYMBOLS
from trainables.data.dataset import Dataset
from trainables.data.structures import checked
from trainables.data.tasks import SAMPLE_TASK
from trainables.errors import UserError
from trainables.graphs.convert import Cutoffs, convert
from trainables.sample import FAMILIES, LABEL_RANGE, build_sample, load_sample

N_CRYSTALS = 40


class _Recorder:
    """Keeps what is reported."""

    def __init__(self) -> None:
        self.advanced = 0.0
        self.lines: list[str] = []

    @contextmanager
    def stage(self, name: str, total: float | None, unit: str) -> Iterator["_Recorder"]:
        yield self

    def advance(self, amount: float, note: str = "") -> None:
        self.advanced += amount

    def message(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def recorder() -> _Recorder:
    return _Recorder()


@pytest.fixture(scope="module")
def sample(recorder: _Recorder) -> Dataset:
    return build_sample(N_CRYSTALS, progress=recorder)


@pytest.mark.trains
def test_another_process_that_wants_fewer_rows_makes_the_same_bytes(sample: Dataset) -> None:
    code = "from trainables.sample import build_sample; print(build_sample(7).digest)"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-W", "ignore", "-c", code]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split()[-1] == sample.take(np.arange(7)).digest


def test_progress_counts_every_crystal(sample: Dataset, recorder: _Recorder) -> None:
    assert recorder.advanced == len(sample) == N_CRYSTALS


def test_every_row_says_that_it_is_synthetic(sample: Dataset) -> None:
    assert sample.ids == tuple(f"synthetic-{row:04d}" for row in range(1, N_CRYSTALS + 1))
    assert sample.task is SAMPLE_TASK
    assert sample.task.synthetic
    assert not sample.task.is_matbench


def test_every_crystal_is_accepted_and_small(sample: Dataset) -> None:
    for crystal in sample.structures:
        checked(crystal)
    assert sample.structures.n_atoms.max() <= 20


@pytest.mark.parametrize("cutoff", [5.0, 6.0])
def test_every_atom_has_neighbours_at_every_cutoff_of_chgnet(sample: Dataset, cutoff: float) -> None:
    assert [convert(crystal, Cutoffs(atom=cutoff)).n_isolated for crystal in sample.structures] == [0] * N_CRYSTALS


def test_no_two_atoms_are_closer_than_in_any_real_compound(sample: Dataset) -> None:
    for crystal in sample.structures:
        distances = crystal.to_structure().make_supercell([2, 2, 2]).distance_matrix
        assert distances[distances > 0].min() > 1.2


def test_labels_are_formation_energies_of_a_believable_spread(sample: Dataset) -> None:
    assert np.isfinite(sample.targets).all()
    assert LABEL_RANGE[0] <= sample.targets.min()
    assert sample.targets.max() <= LABEL_RANGE[1]
    assert np.ptp(sample.targets) > 1.0
    assert np.median(sample.targets) < 0.0


def test_formulas_are_many_and_some_have_polymorphs(sample: Dataset) -> None:
    assert N_CRYSTALS // 2 <= len(set(sample.structures.reduced_formulas)) < N_CRYSTALS


def test_every_choice_of_every_family_gives_a_different_sound_crystal() -> None:
    crystals = list(sample_module._candidates())
    assert len(crystals) > 2 * sample_module.SAMPLE_SIZE
    assert len({(c.lattice.tobytes(), c.numbers.tobytes(), c.frac.tobytes()) for c in crystals}) == len(crystals)
    assert max(len(crystal.numbers) for crystal in crystals) <= 20
    for crystal in crystals:
        checked(crystal)


def test_every_element_of_the_tables_has_sound_cells_for_its_reference_energy() -> None:
    symbols = {symbol for _, roles in FAMILIES.values() for role in roles for symbol in role.split()}
    for symbol in sorted(symbols):
        cells = [checked(cell) for cell in sample_module._element_cells(symbol)]
        assert {SYMBOLS[z] for cell in cells for z in cell.numbers} == {symbol}


def test_wanting_more_than_the_tables_give_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_module, "_candidates", lambda: iter(()))
    with pytest.raises(UserError, match="0 crystals at most, 300 were requested"):
        build_sample()


class _Builds:
    """Stands in for build_sample and counts its calls."""

    def __init__(self, made: Dataset) -> None:
        self.made, self.calls = made, 0

    def __call__(self, *arguments: object, **options: object) -> Dataset:
        self.calls += 1
        return self.made


@pytest.fixture
def builds(sample: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> _Builds:
    stand_in = _Builds(sample)
    monkeypatch.setattr(sample_module, "build_sample", stand_in)
    monkeypatch.setenv("CRYSTALTUNE_CACHE", str(tmp_path / "cache"))
    return stand_in


def test_the_sample_is_built_once_and_read_back_unchanged(builds: _Builds) -> None:
    first, second = load_sample(), load_sample()
    assert builds.calls == 1
    assert first.digest == second.digest
    assert second.ids == first.ids
    assert second.task is SAMPLE_TASK


def _cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-10] ^= 1  # of the hash in the json
    path.write_bytes(content)


def _replaced(path: Path) -> None:
    path.write_text("[1, 2]")


@pytest.mark.parametrize("kind", ["npz", "json"])
@pytest.mark.parametrize("damage", [_cut_in_half, _flip_a_bit, _replaced, Path.unlink])
def test_a_damaged_cache_is_rebuilt(builds: _Builds, tmp_path: Path, damage: Callable[[Path], None], kind: str) -> None:
    wanted = load_sample().digest
    (path,) = (tmp_path / "cache" / "sample").glob(f"*.{kind}")
    damage(path)
    assert load_sample().digest == wanted
    assert builds.calls == 2
    assert load_sample().digest == wanted
    assert builds.calls == 2


def test_another_version_never_meets_the_old_cache(builds: _Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    load_sample()
    monkeypatch.setattr(sample_module, "SAMPLE_VERSION", sample_module.SAMPLE_VERSION + 1)
    load_sample()
    assert builds.calls == 2


def test_a_cache_that_cannot_be_written_is_reported_and_does_no_harm(
    builds: _Builds, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CRYSTALTUNE_CACHE", str(tmp_path / "file"))
    said = _Recorder()
    assert load_sample(said).digest == builds.made.digest
    assert len(said.lines) == 1
    assert "CRYSTALTUNE_CACHE" in said.lines[0]


@pytest.mark.slow
def test_the_whole_sample_has_at_least_150_formulas() -> None:
    whole = build_sample()
    assert len(whole) == sample_module.SAMPLE_SIZE
    assert len(set(whole.structures.reduced_formulas)) >= 150
    assert np.ptp(whole.targets) > 3.0
