"""Stochastic symmetry averaging: training on slightly perturbed crystals, and agreement of their predictions.

With its label kept, a strained crystal is a wrong label: by 1.4, 2.2, 6.8 and 24 meV/atom at 0.25, 0.5, 1 and 2 % of
strain, by 2 and 6 at displacements of 0.01 and 0.02 A. So the ranges are small, and an exact 0 always belongs to them.
"""

from search_spaces.space import Dimension, Point, Space, Values

_PERTURBED: dict[str, Values] = {"augment.strain_size": "nonzero", "augment.displacement_size": "nonzero"}

# fmt: off
SPACE = Space(
    name="ssa",
    description="strains and displacements of the training crystals, and agreement of the predictions",
    fixed={"augment.strain": "symmetry", "augment.displacement": "symmetry"},
    dimensions=(
        Dimension("augment.strain_size", 1e-4, 5e-3, log=True, zero=True, description="of each strain component"),
        Dimension("augment.displacement_size", 1e-3, 0.01, zero=True, description="A; below 0.001 A it has no effect"),
        Dimension("augment.labels", choices=("kept", "corrected"), when=_PERTURBED, tasks="energies",
                  description="corrected by the frozen CHGNet's energy difference"),
        Dimension("consistency.weight", 0.05, 2.0, log=True, zero=True, when=_PERTURBED, otherwise=0.0,
                  description="of the distance of clean and perturbed prediction"),
        Dimension("consistency.supervised", choices=(False, True), when={"consistency.weight": "nonzero"},
                  description="half of the labels' loss on the perturbed crystal"),
    ),
    points=(
        Point("E1", {"augment.strain_size": 1e-3, "augment.displacement_size": 0.005, "consistency.weight": 0.5,
                     "consistency.supervised": True}, "the ladder's augmentation with consistent views"),
        Point("A1", {"augment.strain_size": 1e-3, "augment.displacement_size": 0.005},
              "the ladder's augmentation alone"),
        Point("corrected labels", {"augment.strain_size": 2e-3, "augment.displacement_size": 0.01,
                                   "augment.labels": "corrected"},
              "label noise of strains, taken off: strains may be larger"),
        Point("small strains", {"augment.strain_size": 2e-3},
              "about 1 meV/atom of label noise, below the best published errors"),
    ),
)
# fmt: on
