"""A run's models for use elsewhere: checkpoints of chgnet's own, and an ASE calculator made of them."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from ase.units import GPa

from orchestrator.execution.fold import ALL_ROWS, LoadedFold
from orchestrator.execution.job import LoadedModel
from orchestrator.predict.run import load_folds, trained_folds
from trainables.data.bad_structures import BadStructure, checked
from trainables.data.structure_text import crystal_of_atoms
from trainables.errors import UserError
from trainables.model.stock import require_exportable, stock_content, write_stock


def export_run(run: Path, out: Path | None = None) -> list[Path]:
    """Write every model of a run's folds as a file that chgnet's CHGNet.from_file reads.

    Args:
        out: a folder; by default `chgnet` in the run's.

    Returns:
        The files, in the order of folds and members.

    Raises:
        UserError: no fold is trained, a model that CHGNet cannot express, or a folder that cannot be written.
    """
    folder = run / "chgnet" if out is None else out
    files = []
    for source, fold in zip(trained_folds(run), load_folds(run, "cpu"), strict=True):
        for name, member in zip(fold.manifest.members, fold.members, strict=True):
            own = ALL_ROWS if source.parent.name == ALL_ROWS else source.name
            own = own if name == "." else f"{own}-{Path(name).name}"
            files.append(folder / f"{own}.pth.tar")
            try:
                write_stock(member.model, files[-1])
            except OSError as error:
                raise UserError(f"{files[-1]} cannot be written ({error.strerror}); use another `out`") from None
    return files


def weights_of(folds: Sequence[LoadedFold]) -> list[tuple[float, LoadedModel]]:
    """Return the share of each model in the mean over folds.

    Raises:
        UserError: members that are combined by a median, which has no shares.
    """
    shares = []
    for fold in folds:
        if fold.manifest.combine == "median" and len(fold.members) > fold.manifest.per_member:
            raise UserError("a median of members has no forces: make the ensemble with `combine=mean`")
        given = np.repeat(fold.manifest.weights or [], fold.manifest.per_member).tolist()  # of each model
        own = given if len(given) == len(fold.members) else [1.0] * len(fold.members)
        total = sum(own)
        shares += [(share / total / len(folds), member) for share, member in zip(own, fold.members, strict=True)]
    return [(share, member) for share, member in shares if share]


def _require_crystal(atoms: Any) -> None:
    """Refuse atoms that the models cannot take.

    Raises:
        UserError: no cell, directions that are not periodic without vacuum, overlapping atoms, unknown elements.
    """
    try:
        crystal = checked(crystal_of_atoms(atoms))
    except BadStructure as bad:
        raise UserError(f"these atoms cannot be used: {bad.kind}") from None
    if "not periodic" in crystal.left_out:
        raise UserError("these atoms fill a cell that is periodic in no direction: set atoms.pbc = True")


class RunCalculator(Calculator):
    """ASE's calculator of a run of energies: the mean of its models, each evaluated by chgnet's CHGNet.

    Energy in eV, forces in eV/A and stress in eV/A^3, both derivatives of that energy by autograd.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012 - ASE's own

    def __init__(self, folds: Sequence[LoadedFold], device: str = "cpu", **options: Any) -> None:
        super().__init__(**options)
        from chgnet.model import CHGNet

        self._models = []
        for share, member in weights_of(folds):
            require_exportable(member.model)
            with contextlib.redirect_stdout(io.StringIO()):  # it announces itself
                model = CHGNet.from_dict(stock_content(member.model)["model"])
            self._models.append((share, model.to(device).eval()))

    def calculate(
        self,
        atoms: Any = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Fill `results` for ASE."""
        from pymatgen.io.ase import AseAtomsAdaptor

        super().calculate(atoms, list(properties), list(system_changes))
        _require_crystal(self.atoms)
        structure = AseAtomsAdaptor.get_structure(self.atoms)  # type: ignore[arg-type]
        wanted = "efs" if {"forces", "stress"} & set(properties) else "e"
        try:
            found = [(share, model.predict_structure(structure, task=wanted)) for share, model in self._models]
        except (ValueError, RuntimeError) as error:  # an atom without neighbours, for one
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"CHGNet cannot evaluate these atoms ({reason})") from None

        def mean(name: str) -> Any:
            return sum(share * np.asarray(each[name], dtype=np.float64) for share, each in found)

        energy = float(mean("e")) * len(structure)
        self.results = {"energy": energy, "free_energy": energy}
        if wanted == "efs":
            self.results |= {"forces": mean("f"), "stress": full_3x3_to_voigt_6_stress(mean("s") * GPa)}
