"""The optimiser, the loss, and what stays frozen. The number of epochs is the study's and is not searched."""

from search_spaces.space import Dimension, Point, Space

_INPUTS = ("embedding", "basis")
_TRUNK = (*_INPUTS, "block_1", "block_2", "block_3", "block_4")

# fmt: off
SPACE = Space(
    name="optim",
    description="learning rates, regularisation, batch, averaging, loss and frozen parts",
    dimensions=(
        Dimension("optim.lr", 1e-4, 5e-3, log=True, description="peak learning rate (head)"),
        Dimension("optim.layer_decay", 0.5, 1.0, description="learning-rate factor per block away from the head"),
        Dimension("optim.weight_decay", 1e-4, 0.3, log=True, description="weight decay (matrices only)"),
        Dimension("optim.batch_size", choices=(4, 8, 16, 32, 64), description="crystals of mean cost per batch"),
        Dimension("optim.ema_decay", choices=(0.0, 0.9, 0.97, 0.99, 0.997), description="weight average; 0: off"),
        Dimension("loss.name", choices=("l1", "huber"), description="loss function"),
        Dimension("loss.delta", 0.01, 1.0, log=True, when={"loss.name": ("huber",)},
                  description="error at which huber becomes linear: eV, or standard deviations"),
        Dimension("model.freeze", description="parts that keep their starting weights", choices={
            "nothing": (),
            "inputs": _INPUTS,
            "up to block 2": _TRUNK[:4],
            "all but the head": _TRUNK,
        }),
    ),
    points=(
        Point("small steps", {"optim.lr": 3e-4, "loss.name": "l1", "optim.ema_decay": 0.99},
              "fine-tuning with L1, decay to 1e-5 and averaged weights, as the best protocols"),
        Point("huber", {"optim.lr": 3e-4, "loss.name": "huber", "loss.delta": 0.1}, "the best protocols' other loss"),
        Point("layer-wise", {"optim.layer_decay": 0.8}, "ELECTRA (Clark et al. 2020)"),
        Point("probe", {"model.freeze": "all but the head"}, "the pretrained trunk as it is"),
    ),
)
# fmt: on
