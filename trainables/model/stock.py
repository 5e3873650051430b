"""A trained energy model as a checkpoint of chgnet's own CHGNet, whose forces and stress come with it."""

from pathlib import Path
from typing import Any

import torch

from trainables.errors import UserError
from trainables.files import write_atomically
from trainables.model.chgnet import CrystalModel


def require_exportable(model: CrystalModel) -> None:
    """Refuse what chgnet's CHGNet cannot express.

    Raises:
        UserError: a property head, energies a cell, or a floor.
    """
    if model.head is not None:
        raise UserError("only models of energies can go into CHGNet: a property's head is crystaltune's own")
    if model.per_cell or model.floor is not None:
        raise UserError("CHGNet predicts energies per atom without a floor: this model does not")


def stock_content(model: CrystalModel) -> dict[str, Any]:
    """Return what CHGNet.from_file reads.

    Raises:
        UserError: as require_exportable.
    """
    require_exportable(model)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.without_training_parts().items()}
    return {"model": {"model_args": dict(model.arguments), "state_dict": state}}


def write_stock(model: CrystalModel, path: Path) -> None:
    """Write a file for CHGNet.from_file, whole or not at all.

    Raises:
        UserError: as require_exportable.
    """
    content = stock_content(model)
    write_atomically(path, lambda temporary: torch.save(content, temporary))
