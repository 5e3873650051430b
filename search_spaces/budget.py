"""How a fine-tuning of a given length is spent: rates, decay, averages and batches. The presets are chosen with it."""

from search_spaces.space import Dimension, Point, Space

# fmt: off
SPACE = Space(
    name="budget",
    description="learning rates, weight decay, weight average, batch and frozen reference: what presets are chosen by",
    dimensions=(
        Dimension("optim.lr", choices=(3e-4, 6e-4, 1e-3, 2e-3), description="peak learning rate (head)"),
        Dimension("optim.layer_decay", choices=(1.0, 0.85, 0.7), description="learning-rate factor per block"),
        Dimension("optim.weight_decay", choices=(0.01, 0.05, 0.1), description="weight decay (matrices only)"),
        Dimension("optim.batch_size", choices=(8, 16, 32), description="crystals of mean cost per batch"),
        Dimension("optim.ema_half_life", choices=(0.0, 0.01, 0.03, 0.1),
                  description="half-life of the weight average as a share of the run; 0: by optim.ema_decay"),
        Dimension("model.freeze", description="parts that keep their starting weights",
                  choices={"nothing": (), "reference": ("reference",)}),
    ),
    points=(
        Point("published fine-tuning", {"optim.lr": 3e-4, "optim.weight_decay": 0.05, "optim.ema_half_life": 0.03,
                                        "optim.layer_decay": 0.85},
              "small rates, stronger decay, averaged weights and lower rates far from the head"),
        Point("stronger decay", {"optim.weight_decay": 0.1}, "0.05 to 0.1 in the best published protocols"),
        Point("longer average", {"optim.ema_half_life": 0.1}, "a tenth of the run"),
        Point("frozen reference", {"model.freeze": "reference"},
              "energies of the elements as they were fitted before training: reported best for CHGNet"),
    ),
)
# fmt: on
