"""The synthetic sample: about 300 made-up crystals with made-up labels, for machines without data.

Prototype cells of the AFLOW library (they come with pymatgen) get other elements, each prototype those that fit its
sites and charges; a cell is sized by atomic radii and then by CHGNet. The label is a formation energy, also CHGNet's
(its r2scan weights), so a model is asked to imitate another model. It shows that the whole chain works. It is
synthetic and never to be compared with Matbench or with any measured or computed benchmark.
"""

import gzip
import hashlib
import io
import itertools
import json
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pymatgen.core import Element

from trainables.data.crystals import SYMBOLS, Crystal, CrystalTable
from trainables.data.dataset import Dataset
from trainables.data.locate import cache_home
from trainables.data.structures import BadStructure, checked, read_crystal
from trainables.data.tasks import SAMPLE_TASK
from trainables.errors import UserError
from trainables.files import read_json, write_atomically, write_json
from trainables.graphs.batch import collate, prediction_batches
from trainables.graphs.convert import Cutoffs, convert
from trainables.graphs.store import open_or_build
from trainables.model.chgnet import CrystalModel, build_model
from trainables.progress import Progress, silent

SAMPLE_VERSION = 1  # raise it when a table or a rule below changes
SAMPLE_SIZE = 300
POLYMORPHS = 2  # prototypes of one formula, at most
LABEL_RANGE = (-5.0, 1.0)  # eV/atom; beyond it CHGNet is guessing, and the crystal is left out
_SCALES = np.array([0.90, 0.95, 1.00, 1.05, 1.10])  # of the cell edges
_ELEMENT_SCALES = np.arange(0.80, 1.26, 0.05)  # Slater's radii are made for compounds, so elements look further
_BATCH_COST = 40_000.0  # directed bonds and angles that go through the model at once
_SMALLEST_CUTOFF = Cutoffs(atom=5.0)  # of CHGNet 0.2.0: no atom may be alone in it


class Family(NamedTuple):
    """Compounds of one kind: every prototype with every choice of elements.

    Attributes:
        prototypes: AFLOW label, then the prototype's own elements in the order of the roles.
        roles: the elements that may take each role; roles of one family balance each other's charges.
    """

    prototypes: tuple[str, ...]
    roles: tuple[str, ...]


_ROCKSALT, _CESIUM_CHLORIDE, _ZINCBLENDE = "AB_cF8_225_a_b Na Cl", "AB_cP2_221_b_a Cs Cl", "AB_cF8_216_c_a Zn S"
_WURTZITE, _NICKELINE = "AB_hP4_186_b_b Zn S", "AB_hP4_194_c_a Ni As"
_FLUORITE, _RUTILE, _CADMIUM_IODIDE = "AB2_cF12_225_a_c Ca F", "A2B_tP6_136_f_a Ti O", "AB2_hP3_164_a_d Cd I"
_PEROVSKITE, _ILMENITE = "AB3C_cP5_221_a_c_b Ca Ti O", "AB3C_hR10_148_c_f_c Fe Ti O"
_TETRAGONAL_PEROVSKITE = "A3BC_tP5_99_bc_a_b Pb Zr O"
_BISMUTH_FLUORIDE, _ALUMINUM_FLUORIDE = "AB3_cF16_225_a_bc Bi F", "AB3_hR8_155_c_de Al F"
_CORUNDUM, _TETRADYMITE = "A2B3_hR10_167_c_e Al O", "A2B3_hR5_166_c_ac Bi Te"
_LAVES = ("A2B_cF24_227_d_a Mg Cu", "AB2_hP12_194_f_ah Mg Zn")

FAMILIES: dict[str, Family] = {
    "alkali halides": Family((_ROCKSALT, _CESIUM_CHLORIDE, _ZINCBLENDE), ("Li Na K Rb Cs", "F Cl Br I")),
    "coinage halides": Family((_ZINCBLENDE, _ROCKSALT, _WURTZITE), ("Cu Ag Tl", "F Cl Br I")),
    "alkaline-earth chalcogenides": Family((_ROCKSALT, _CESIUM_CHLORIDE, _WURTZITE), ("Be Mg Ca Sr Ba", "O S Se Te")),
    "transition-metal chalcogenides": Family(
        (_ROCKSALT, _NICKELINE, _WURTZITE, _ZINCBLENDE), ("Mn Fe Co Ni Zn Cd", "O S Se Te")
    ),
    "lone-pair chalcogenides": Family((_ROCKSALT, "AB_oP8_62_c_c Ge S", "AB_tP4_129_a_c Pb O"), ("Ge Sn Pb", "O S Se Te")),
    "pnictides": Family((_ZINCBLENDE, _WURTZITE, _ROCKSALT), ("B Al Ga In", "N P As Sb")),
    "transition-metal pnictides": Family((_ROCKSALT, _NICKELINE), ("Sc Y La Ti V Cr", "N P As Sb")),
    "carbides": Family((_ROCKSALT, "AB_hP2_187_d_a W C", _ZINCBLENDE), ("Ti Zr Hf V Nb Ta Mo W Si", "C")),
    "dihalides": Family(
        (_FLUORITE, _RUTILE, _CADMIUM_IODIDE, "AB2_oP6_58_a_g Ca Cl", "A2B_oP12_62_2c_c Pb Cl"),
        ("Mg Ca Sr Ba Mn Fe Ni Zn Cd Pb", "F Cl Br I"),
    ),
    "dioxides": Family(
        (_RUTILE, "A2B_tI12_141_e_a Ti O", _FLUORITE, "A2B_hP9_152_c_a Si O"), ("Si Ge Sn Ti Zr Hf V Nb Mn Ru Ce", "O")
    ),
    "dichalcogenides": Family(
        (_CADMIUM_IODIDE, "AB2_hP6_194_c_f Mo S", "AB2_cP12_205_a_c Fe S"), ("Ti Zr Hf V Nb Ta Mo W Sn Pt", "S Se Te")
    ),
    "alkali chalcogenides": Family(("AB2_cF12_225_a_c F Ca", "A2B_oP12_62_2c_c Cl Pb"), ("Li Na K Rb", "O S Se Te")),
    "sesquioxides": Family((_CORUNDUM, _TETRADYMITE), ("Al Ga In Sc Ti V Cr Fe Y La Bi", "O S Se Te")),
    "trihalides": Family(
        (_BISMUTH_FLUORIDE, _ALUMINUM_FLUORIDE, "AB3_hR8_148_c_f Bi I", "A3B_cP4_221_d_a Re O"),
        ("Al Ga In Sc Y La Cr Fe Bi", "F Cl Br I"),
    ),
    "alkali pnictides": Family(("AB3_hP8_194_c_bf Na As", "AB3_cF16_225_a_bc F Bi"), ("Li Na K", "N P As Sb Bi")),
    "perovskites 2-4": Family(
        (_PEROVSKITE, _TETRAGONAL_PEROVSKITE, _ILMENITE), ("Mg Ca Sr Ba Pb Cd", "Ti Zr Hf Sn Ge Mn", "O")
    ),
    "perovskites 1-5": Family((_PEROVSKITE, "ABC3_hR10_161_a_a_b Li Nb O", _ILMENITE), ("Li Na K Rb Ag", "V Nb Ta", "O")),
    "perovskites 3-3": Family((_PEROVSKITE, _ILMENITE), ("La Nd Y Bi", "Al Ga Sc V Cr Mn Fe Co", "O")),
    "halide perovskites": Family((_PEROVSKITE,), ("Na K Rb Cs", "Mg Ca Mn Zn Ge Sn Pb", "F Cl Br")),
    "antiperovskites": Family((_PEROVSKITE,), ("Al Ga In Sn", "C N", "Sc Ti Mn Fe Ni")),
    "layered ternaries": Family(("ABC2_hR4_166_a_b_c Na Cr S",), ("Li Na K", "Al Sc V Cr Co Y In", "O S Se")),
    "chalcopyrites": Family(("ABC2_tI16_122_a_b_d Cu Fe S",), ("Cu Ag", "Al Ga In Fe", "S Se Te")),
    "spinels": Family(("A2BC4_cF56_227_d_a_e Mg Al O",), ("Mg Zn Mn Fe Co Cd", "Al Ga Cr V In Sc", "O S")),
    "matlockites": Family(("ABC_tP6_129_c_a_c Pb F Cl",), ("Ca Sr Ba Pb", "F", "Cl Br I")),
    "oxyhalides": Family(("ABC_tP6_129_c_a_c Pb F Cl",), ("La Y Bi Nd", "O", "F Cl Br I")),
    "half-Heuslers": Family(("ABC_cF12_216_b_c_a Mg Ag As",), ("Ti Zr Hf", "Ni Pd Pt", "Sn Ge Pb")),
    "Heuslers": Family(("AB2C_cF16_225_a_c_b Mn Cu Al",), ("Ti V Mn Cr Fe", "Co Ni Cu Fe", "Al Ga Si Ge Sn")),
    "MAX phases": Family(("ABC2_hP8_194_d_a_f Cr Al C",), ("Ti Zr V Nb Ta Cr", "Al Ga Ge Sn", "C N")),
    "aluminides": Family((_CESIUM_CHLORIDE, "AB_tP2_123_a_d Cu Au"), ("Ti Fe Co Ni Ru Rh Pd", "Al Ga In")),
    "alloys 1:1": Family((_CESIUM_CHLORIDE, "AB_tP2_123_a_d Cu Au", "AB_oC8_63_c_c Cr B"), ("Ti Zr Hf Y Mg", "Cu Ag Au Ni Pd Pt")),
    "alloys 3:1": Family(
        ("AB3_cP4_221_a_c Cu Au", "A3B_tI8_139_bd_a Al Ti", "A3B_hP8_194_h_c Ni Sn"), ("Ni Pt Pd Al Cu", "Ti V Zr Nb Ga Sn")
    ),
    "Laves phases": Family(_LAVES, ("Mg Ca Ti Zr Y", "Cu Zn Al Fe Co Ni Cr")),
    "A15 phases": Family(("A3B_cP8_223_c_a Cr Si",), ("V Nb Cr Mo Ti", "Si Ge Sn Al Ga Pt")),
    "silicides": Family(("AB2_tI6_139_a_e Mo Si", "AB2_hP9_180_d_j Cr Si"), ("Ti V Cr Nb Mo Ta W", "Si Ge")),
    "borides": Family(("AB2_hP3_191_a_d Al B",), ("Mg Al Ti Zr Hf V Nb Ta Cr", "B")),
    "hexaborides": Family(("A6B_cP7_221_f_a Ca B",), ("Ca Sr Ba La Ce Y", "B")),
    "CaCu5 phases": Family(("AB5_hP6_191_a_cg Ca Cu",), ("Ca Y La Nd", "Cu Ni Co Zn Pt")),
}
