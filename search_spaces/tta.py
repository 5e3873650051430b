"""Test-time augmentation: how many views of a crystal are predicted, and how they become one number.

Nothing is trained: one model serves all trials. Strained views are biased upward in energy (0.7 meV/atom at 0.5 % of
strain, 3.7 at 1 %), and opposite strains do not cancel it, hence the small sizes and the correction.
"""

from search_spaces.space import Dimension, Point, Space

_VIEWS = {"tta.views": (2, 4, 8, 16)}

# fmt: off
SPACE = Space(
    name="tta",
    description="views at test time of one trained model, and how they are combined",
    runs="prediction",
    dimensions=(
        Dimension("tta.views", choices=(1, 2, 4, 8, 16), description="1: the plain prediction"),
        Dimension("tta.kinds", when=_VIEWS, description="what views differ by", choices={
            "both": {"tta.strain": "symmetry", "tta.displacement": "symmetry"},
            "strain": {"tta.strain": "symmetry", "tta.displacement": "none"},
            "displacement": {"tta.strain": "none", "tta.displacement": "symmetry"},
        }),
        Dimension("tta.strain_size", 1e-4, 5e-3, log=True, when={"tta.kinds": ("both", "strain")},
                  description="of each strain component"),
        Dimension("tta.displacement_size", 1e-3, 0.01, when={"tta.kinds": ("both", "displacement")}, description="A"),
        Dimension("tta.identity", choices=(True, False), when=_VIEWS, otherwise=True,
                  description="the crystal as it is, is one of the views"),
        Dimension("tta.aggregate", choices=("mean", "median", "trimmed"), when=_VIEWS,
                  description="trimmed: mean of the middle half"),
        Dimension("tta.corrected", choices=(False, True), when=_VIEWS, tasks="energies",
                  description="without the frozen CHGNet's energy difference"),
    ),
    points=(
        Point("T4", {"tta.views": 4, "tta.kinds": "both", "tta.strain_size": 1e-3, "tta.displacement_size": 0.005},
              "the ladder's 4 views"),
        Point("median", {"tta.views": 8, "tta.kinds": "both", "tta.strain_size": 1e-3, "tta.aggregate": "median"},
              "8 views, robust to outliers"),
        Point("corrected views", {"tta.views": 4, "tta.kinds": "both", "tta.strain_size": 2e-3, "tta.corrected": True},
              "the upward bias of strained energies, taken off"),
    ),
)
# fmt: on
