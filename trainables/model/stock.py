"""A trained energy model as a checkpoint of chgnet's own CHGNet, whose forces and stress come with it."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainables.errors import UserError
from trainables.files import write_atomically
from trainables.model.chgnet import CrystalModel


def require_exportable(model: nn.Module) -> CrystalModel:
    """Return the model if chgnet's CHGNet can express it.

    Raises:
        UserError: a property head, energies a cell, a floor, or a model of tables.
    """
    if not isinstance(model, CrystalModel):
        raise UserError("only fine-tuned CHGNets can go into CHGNet: this run has a model of tables among its members")
    if model.head is not None:
        raise UserError("only models of energies can go into CHGNet: a property's head is crystaltune's own")
    if model.per_cell or model.floor is not None:
        raise UserError("CHGNet predicts energies per atom without a floor: this model does not")
    return model


def stock_content(model: nn.Module) -> dict[str, Any]:
    """Return what CHGNet.from_file reads.

    Raises:
        UserError: as require_exportable.
    """
    own = require_exportable(model)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in own.without_training_parts().items()}
    return {"model": {"model_args": dict(own.arguments), "state_dict": state}}


def write_stock(model: nn.Module, path: Path) -> None:
    """Write a file for CHGNet.from_file, whole or not at all.

    Raises:
        UserError: as require_exportable.
    """
    content = stock_content(model)
    write_atomically(path, lambda temporary: torch.save(content, temporary))
