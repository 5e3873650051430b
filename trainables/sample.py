"""The synthetic sample: about 300 made-up crystals with made-up labels, for machines without data.

Prototype cells of the AFLOW library (pymatgen ships them) get other elements, chosen to fit their sites and charges,
and the size that CHGNet's r2scan weights like best. The label is a formation energy by the same weights, so a model
that starts from `r2scan` has nothing to learn and any other imitates it. The sample shows that the whole chain runs.
It is synthetic and never to be compared with Matbench or any other benchmark.
"""

import gzip
import hashlib
import io
import itertools
import json
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pymatgen.core import Element

from trainables.crystals import SYMBOLS, Crystal, CrystalTable
from trainables.data.cache import cache_home
from trainables.data.dataset import Dataset
from trainables.data.structures import BadStructure, checked, read_crystal
from trainables.data.tasks import SAMPLE_TASK
from trainables.errors import UserError
from trainables.files import read_json, sha256_of_file, write_atomically, write_json
from trainables.graphs.batch import collate, prediction_batches
from trainables.graphs.convert import ConversionError, Cutoffs, convert
from trainables.graphs.store import open_or_build
from trainables.model.chgnet import build_model
from trainables.progress import Progress, silent

SAMPLE_VERSION = 1  # raise it when a table or a rule below changes
SAMPLE_SIZE = 300
LABEL_RANGE = (-5.0, 1.0)  # eV/atom; what lies beyond is left out
_POLYMORPHS = 2  # prototypes of one formula, at most
_SCALES = np.array([0.91, 0.97, 1.03, 1.09])  # of the edges that radii give; tried on every cell
_REACH = 0.03  # how far beyond them the best size may lie
_BLOCK = 50  # crystals labelled together, however many are wanted: the first rows never depend on the number of rows
_BATCH_COST = 20_000.0  # directed bonds and angles that go through the model at once
_TABLE_ARRAYS = ("lattices", "numbers", "frac", "offsets")  # a CrystalTable's
_SMALLEST_CUTOFF = Cutoffs(atom=5.0)  # CHGNet 0.2.0's: no atom may be alone in it

_ROCKSALT, _CSCL, _ZINCBLENDE = "AB_cF8_225_a_b Na Cl", "AB_cP2_221_b_a Cs Cl", "AB_cF8_216_c_a Zn S"
_WURTZITE, _NIAS, _L1_0 = "AB_hP4_186_b_b Zn S", "AB_hP4_194_c_a Ni As", "AB_tP2_123_a_d Cu Au"
_FLUORITE, _RUTILE, _CDI2 = "AB2_cF12_225_a_c Ca F", "A2B_tP6_136_f_a Ti O", "AB2_hP3_164_a_d Cd I"
_COTUNNITE, _CACL2, _PYRITE = "A2B_oP12_62_2c_c Pb Cl", "AB2_oP6_58_a_g Ca Cl", "AB2_cP12_205_a_c Fe S"
_PEROVSKITE, _TETRAGONAL = "AB3C_cP5_221_a_c_b Ca Ti O", "A3BC_tP5_99_bc_a_b Pb Zr O"
_ILMENITE, _LINBO3 = "AB3C_hR10_148_c_f_c Fe Ti O", "ABC3_hR10_161_a_a_b Li Nb O"
_ALF3, _BII3, _MATLOCKITE = "AB3_hR8_155_c_de Al F", "AB3_hR8_148_c_f Bi I", "ABC_tP6_129_c_a_c Pb F Cl"

# Kinds of compounds: prototypes (AFLOW label, then its own elements, one a role), and the elements that may take each
# role. Every choice goes with every prototype; ionic ones balance their charges.
FAMILIES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "alkali halides": ((_ROCKSALT, _CSCL, _ZINCBLENDE), ("Li Na K Rb Cs", "F Cl Br I")),
    "coinage halides": ((_ZINCBLENDE, _ROCKSALT, _WURTZITE), ("Cu Ag Tl", "F Cl Br I")),
    "alkaline-earth chalcogenides": ((_ROCKSALT, _CSCL, _WURTZITE), ("Mg Ca Sr Ba", "O S Se Te")),
    "transition-metal chalcogenides": ((_ROCKSALT, _NIAS, _WURTZITE), ("Mn Fe Co Ni Zn Cd", "O S Se Te")),
    "lone-pair chalcogenides": ((_ROCKSALT, "AB_oP8_62_c_c Ge S"), ("Ge Sn Pb", "O S Se Te")),
    "pnictides": ((_ZINCBLENDE, _WURTZITE), ("B Al Ga In", "N P As Sb")),
    "transition-metal pnictides": ((_ROCKSALT, _NIAS), ("Sc Y La Ti V Cr", "N P As Sb")),
    "carbides": ((_ROCKSALT, "AB_hP2_187_d_a W C"), ("Ti Zr Hf V Nb Ta Mo W", "C")),
    "dihalides": ((_FLUORITE, _RUTILE, _CDI2, _CACL2, _COTUNNITE), ("Mg Ca Sr Ba Mn Fe Ni Zn Cd", "F Cl Br I")),
    "dioxides": ((_RUTILE, "A2B_tI12_141_e_a Ti O", _FLUORITE), ("Ge Sn Ti Zr Hf V Nb Mn Ru Ce", "O")),
    "dichalcogenides": ((_CDI2, "AB2_hP6_194_c_f Mo S", _PYRITE), ("Ti Zr Hf V Nb Ta Mo W Sn Pt", "S Se Te")),
    "alkali chalcogenides": (("AB2_cF12_225_a_c F Ca", "A2B_oP12_62_2c_c Cl Pb"), ("Li Na K Rb", "O S Se Te")),
    "sesquioxides": (("A2B3_hR10_167_c_e Al O",), ("Al Ga In Sc Ti V Cr Fe", "O")),
    "sesquichalcogenides": (("A2B3_hR5_166_c_ac Bi Te",), ("Al Ga In Sb Bi", "S Se Te")),
    "trihalides": ((_ALF3, _BII3), ("Al Ga In Sc Y La Cr Fe Bi", "F Cl Br I")),
    "alkali pnictides": (("AB3_hP8_194_c_bf Na As", "AB3_cF16_225_a_bc F Bi"), ("Li Na K", "N P As Sb Bi")),
    "perovskites 2-4": ((_PEROVSKITE, _TETRAGONAL, _ILMENITE), ("Mg Ca Sr Ba Pb Cd", "Ti Zr Hf Sn Ge Mn", "O")),
    "perovskites 1-5": ((_PEROVSKITE, _LINBO3, _ILMENITE), ("Li Na K Rb Ag", "V Nb Ta", "O")),
    "perovskites 3-3": ((_PEROVSKITE, _ILMENITE), ("La Nd Y Bi", "Al Ga Sc V Cr Mn Fe Co", "O")),
    "halide perovskites": ((_PEROVSKITE,), ("Na K Rb Cs", "Mg Ca Mn Zn Ge Sn Pb", "F Cl Br")),
    "antiperovskites": ((_PEROVSKITE,), ("Al Ga In Sn", "C N", "Sc Ti Mn Fe Ni")),
    "layered ternaries": (("ABC2_hR4_166_a_b_c Na Cr S",), ("Li Na K", "Al Sc V Cr Co Y In", "O S Se")),
    "chalcopyrites": (("ABC2_tI16_122_a_b_d Cu Fe S",), ("Cu Ag", "Al Ga In Fe", "S Se Te")),
    "spinels": (("A2BC4_cF56_227_d_a_e Mg Al O",), ("Mg Zn Mn Fe Co Cd", "Al Ga Cr V In Sc", "O S")),
    "mixed halides": ((_MATLOCKITE,), ("Ca Sr Ba Pb", "F", "Cl Br I")),
    "oxyhalides": ((_MATLOCKITE,), ("La Y Bi Nd", "O", "F Cl Br I")),
    "half-Heuslers": (("ABC_cF12_216_b_c_a Mg Ag As",), ("Ti Zr Hf", "Ni Pd Pt", "Sn Ge Pb")),
    "Heuslers": (("AB2C_cF16_225_a_c_b Mn Cu Al",), ("Ti V Mn Cr", "Co Ni Cu Fe", "Al Ga Si Ge Sn")),
    "MAX phases": (("ABC2_hP8_194_d_a_f Al Cr C",), ("Al Ga Ge Sn", "Ti Zr V Nb Ta Cr", "C N")),
    "aluminides": ((_CSCL, _L1_0), ("Ti Fe Co Ni Ru Rh Pd", "Al Ga In")),
    "alloys 1:1": ((_CSCL, _L1_0, "AB_oC8_63_c_c Cr B"), ("Ti Zr Hf Y Mg", "Cu Ag Au Ni Pd Pt")),
    "alloys 3:1": (("AB3_cP4_221_a_c Au Cu", "A3B_hP8_194_h_c Sn Ni"), ("Ti V Zr Nb Ga Sn", "Ni Pt Pd Al Cu")),
    "Laves phases": (("A2B_cF24_227_d_a Mg Cu", "AB2_hP12_194_f_ah Mg Zn"), ("Mg Ca Ti Zr Y", "Cu Zn Fe Co Ni")),
    "silicides": (("AB2_tI6_139_a_e Mo Si", "AB2_hP9_180_d_j Cr Si"), ("Ti V Cr Nb Mo Ta W", "Si Ge")),
    "borides": (("AB2_hP3_191_a_d Al B",), ("Mg Al Ti Zr Hf V Nb Ta Cr", "B")),
    "CaCu5 phases": (("AB5_hP6_191_a_cg Ca Cu",), ("Ca Y La Nd", "Cu Ni Co Zn Pt")),
}

# The cells in which an element's reference energy is looked for: these, or else fcc, bcc and hcp. The gases are
# molecular crystals, as they are in the Materials Project, whose relaxations CHGNet has learned from.
_METAL_CELLS = ("A_cF4_225_a Cu", "A_cI2_229_a W", "A_hP2_194_c Mg")
_ELEMENT_CELLS = {
    "A_cP8_205_c N": "N",
    "A_mC4_12_i O": "N O F Cl Br I",
    "A_oC8_64_f I": "F Cl Br I",
    "A_hP3_152_a Se": "S Se Te",
    "A_hR2_166_c As": "P As Sb Bi",
    "A_oC8_64_f P": "P",
    "A_cF8_227_a C": "C Si Ge Sn",
    "A_hP4_194_bc C": "C",
    "A_tI4_141_a Sn": "Sn",
    "A_hR12_166_2h B": "B",
    "A_oC8_64_f Ga": "Ga",
}
# Half a bond of the element, A, where that is far from the radius in compounds.
_BOND_RADIUS = {"N": 0.55, "O": 0.60, "F": 0.71, "P": 1.11, "As": 1.25, "Ce": 1.70, "Pb": 1.75}


def load_sample(progress: Progress = silent) -> Dataset:
    """Return the synthetic sample of SAMPLE_SIZE crystals, built once and kept in crystaltune's cache folder."""
    made_with = {"sample": SAMPLE_VERSION, "chgnet": version("chgnet"), "pymatgen": version("pymatgen")}
    name = hashlib.sha256(json.dumps(made_with, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_home() / "sample"
    arrays, meta = folder / f"{name}.npz", folder / f"{name}.json"
    kept = _read(arrays, meta)
    if kept is not None:
        return kept
    dataset = build_sample(progress=progress)
    try:
        write_atomically(arrays, lambda temporary: _write_arrays(temporary, dataset))
        write_json(meta, {**made_with, "synthetic": True, "sha256": sha256_of_file(arrays)})
    except OSError as error:
        progress.message(f"the synthetic sample cannot be kept in {folder} ({error.strerror}); set CRYSTALTUNE_CACHE")
    return dataset


def _read(arrays: Path, meta: Path) -> Dataset | None:
    """Return what is in the cache, or None where it is missing or not what was written."""
    try:
        if read_json(meta)["sha256"] != sha256_of_file(arrays):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    with np.load(arrays, allow_pickle=False) as held:
        return _dataset(CrystalTable(*(held[name] for name in _TABLE_ARRAYS)), held["targets"])


def _write_arrays(path: Path, dataset: Dataset) -> None:
    buffer = io.BytesIO()  # numpy would add .npz to the temporary name
    table = {name: getattr(dataset.structures, name) for name in _TABLE_ARRAYS}
    np.savez(buffer, **table, targets=dataset.targets)
    path.write_bytes(buffer.getvalue())


def _dataset(table: CrystalTable, targets: NDArray[np.float64]) -> Dataset:
    return Dataset(tuple(f"synthetic-{row:04d}" for row in range(1, len(table) + 1)), table, targets, SAMPLE_TASK)


def build_sample(n_crystals: int = SAMPLE_SIZE, *, progress: Progress = silent) -> Dataset:
    """Make the synthetic sample: the same bytes on every call; a smaller one is the beginning of a larger one.

    Cells are scaled, not relaxed: their shape and the positions stay the prototype's.

    Args:
        n_crystals: wanted rows.

    Returns:
        Rows "synthetic-0001" and on, targets in eV/atom. Never to be compared with Matbench.

    Raises:
        UserError: more crystals are wanted than the tables give.
    """
    labeller, candidates = _Labeller(), _candidates()
    kept: list[tuple[Crystal, float]] = []
    with progress.stage("make the synthetic sample", n_crystals, "crystals") as bar:
        while len(kept) < n_crystals:
            block = list(itertools.islice(candidates, _BLOCK))
            if not block:
                raise UserError(f"the synthetic sample has {len(kept)} crystals at most, {n_crystals} were requested")
            found = [pair for pair in labeller.label(block) if _is_sound(*pair)][: n_crystals - len(kept)]
            kept += found
            bar.advance(len(found))
    return _dataset(CrystalTable.pack(crystal for crystal, _ in kept), np.array([label for _, label in kept]))


def _candidates() -> Iterator[Crystal]:
    """Yield the substituted prototypes: in turn one formula of each family, in a seeded order."""
    queues = []
    for _, roles in FAMILIES.values():
        choices = itertools.product(*(role.split() for role in roles))
        queues.append(sorted(choices, key=lambda choice: _seeded(*choice)))
    for turn in itertools.zip_longest(*queues):
        for (prototypes, _), choice in zip(FAMILIES.values(), turn, strict=True):
            if choice is not None:
                ranked = sorted(prototypes, key=lambda prototype: _seeded(prototype, *choice))
                radii = [Element(symbol).data["Atomic radius"] for symbol in choice]
                yield from (_substituted(prototype, choice, radii) for prototype in ranked[:_POLYMORPHS])


def _seeded(*words: str) -> bytes:
    """Return a key for a seeded order that doesn't depend on any library's generator."""
    return hashlib.sha256(" ".join((f"synthetic {SAMPLE_VERSION}", *words)).encode()).digest()


@cache
def _prototypes() -> dict[tuple[str, frozenset[str]], dict[str, Any]]:
    """AFLOW's prototypes by label and own elements, as pymatgen's dictionaries."""
    # The file, not the module over it: that one takes seconds to import.
    packed = (files("pymatgen.analysis") / "prototypes" / "aflow_prototypes.json.gz").read_bytes()
    entries = [(entry["tags"]["aflow"], entry["snl"]) for entry in json.loads(gzip.decompress(packed))]
    return {(label, frozenset(site["label"] for site in cell["sites"])): cell for label, cell in entries}


def _substituted(prototype: str, choice: Sequence[str], radii: Sequence[float]) -> Crystal:
    """Return the prototype with the chosen elements on its roles, sized so that the closest unlike atoms touch.

    Args:
        radii: of the chosen elements, A.
    """
    label, *own = prototype.split()
    cell = read_crystal(_prototypes()[label, frozenset(own)], Path())
    role = np.array([own.index(SYMBOLS[z]) for z in cell.numbers])  # (n_atoms,)
    graph = convert(cell, Cutoffs())
    first, second = graph.bond_atoms.T
    apart = (cell.frac[second] + graph.bond_image - cell.frac[first]) @ cell.lattice  # (n_bonds, 3)
    tightness = np.array(radii)[role[graph.bond_atoms]].sum(axis=1) / np.linalg.norm(apart, axis=1)
    counted = (role[first] != role[second]) | (len(own) == 1)
    numbers = np.array([Element(symbol).Z for symbol in choice], dtype=np.uint8)[role]
    return Crystal(cell.lattice * round(float(tightness[counted].max()), 4), numbers, cell.frac)


def _element_cells(symbol: str) -> list[Crystal]:
    cells = [cell for cell, symbols in _ELEMENT_CELLS.items() if symbol in symbols.split()]
    radius = _BOND_RADIUS.get(symbol) or Element(symbol).data["Atomic radius" if cells else "Metallic radius"]
    return [_substituted(cell, [symbol], [radius]) for cell in cells or _METAL_CELLS]


def _is_sound(crystal: Crystal, label: float) -> bool:
    try:
        connected = convert(checked(crystal), _SMALLEST_CUTOFF).n_isolated == 0
    except (BadStructure, ConversionError):
        return False
    return connected and LABEL_RANGE[0] <= label <= LABEL_RANGE[1]  # False for NaN


class _Labeller:
    """CHGNet r2scan, and the elements' energies it has given so far."""

    def __init__(self) -> None:
        self._quick = build_model("r2scan", SAMPLE_TASK)  # finds sizes, which are rounded
        self._exact = build_model("r2scan", SAMPLE_TASK).double()  # gives labels
        self._reference = np.full(len(SYMBOLS), np.nan)  # (119,) eV/atom

    def label(self, crystals: list[Crystal]) -> Iterator[tuple[Crystal, float]]:
        """Yield the crystals at their best size, and their formation energies in eV/atom.

        The energy is NaN where no best size lies within _REACH of _SCALES.
        """
        best, energy, found = self._at_best_size(crystals)
        for z in np.unique(np.concatenate([crystal.numbers for crystal in crystals])):
            if np.isnan(self._reference[z]):
                self._reference[z] = self._element_energy(SYMBOLS[z])
        for crystal, value, certain in zip(best, energy, found, strict=True):
            # Rounded, so that the order of a machine's sums leaves no trace.
            label = round(float(value - self._reference[crystal.numbers].mean()), 6)
            yield crystal, label if certain else float("nan")

    def _element_energy(self, symbol: str) -> float:
        """Return the lowest energy of the element over a few cells, eV/atom."""
        _, energy, _ = self._at_best_size(_element_cells(symbol))
        return float(energy.min())

    def _at_best_size(self, crystals: list[Crystal]) -> tuple[list[Crystal], NDArray[np.float64], NDArray[np.bool_]]:
        """Each crystal at the minimum of a parabola through its three lowest sizes.

        Returns:
            The crystals; their energies, (n,) eV/atom; and whether the minimum is one and within reach, (n,).
        """
        sized = [crystal._replace(lattice=crystal.lattice * scale) for crystal in crystals for scale in _SCALES]
        curve = self._energies(sized, quick=True).reshape(len(crystals), len(_SCALES))
        middle = np.clip(curve.argmin(axis=1), 1, len(_SCALES) - 2)
        left, lowest, right = (curve[np.arange(len(curve)), middle + step] for step in (-1, 0, 1))
        bend = np.maximum(left - 2 * lowest + right, 1e-9)
        scale = _SCALES[middle] + (left - right) / (2 * bend) * (_SCALES[1] - _SCALES[0])
        reached = np.clip(scale, _SCALES[0] - _REACH, _SCALES[-1] + _REACH)
        factors = np.round(reached, 2)  # to 1 %, so that every machine chooses the same
        best = [crystal._replace(lattice=crystal.lattice * f) for crystal, f in zip(crystals, factors, strict=True)]
        return best, self._energies(best), scale == reached

    def _energies(self, crystals: list[Crystal], *, quick: bool = False) -> NDArray[np.float64]:
        """Energies, (n,) eV/atom; quick ones in float32 and without the elements' share, which no size changes."""
        predict = self._quick.graph_energy if quick else self._exact
        with tempfile.TemporaryDirectory(prefix="crystaltune-") as folder, torch.no_grad():
            store = open_or_build(CrystalTable.pack(crystals), self._exact.cutoffs, Path(folder), workers=1)
            energy = np.full(len(store), np.nan)
            for rows in prediction_batches(store.cost, _BATCH_COST):
                energy[rows] = predict(collate(store, rows)).numpy()
        return energy
