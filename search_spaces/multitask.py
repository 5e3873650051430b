"""Joint training with auxiliary tasks (the base's multitask.tasks) before the target's own training."""

from search_spaces.space import Dimension, Point, Space

# fmt: off
SPACE = Space(
    name="multitask",
    description="length, mixing and loss weights of joint training with auxiliary tasks",
    dimensions=(
        Dimension("multitask.epochs", 1, 10, integer=True, description="of the target's rows in the joint training"),
        Dimension("multitask.mixing", choices=("proportional", "sqrt", "equal"),
                  description="steps of a task: as its rows, as their root, as many for each"),
        Dimension("multitask.weighting", choices=("fixed", "uncertainty"), description="uncertainty: learnt scales"),
        Dimension("multitask.weight", 0.1, 3.0, log=True, when={"multitask.weighting": ("fixed",)},
                  description="of each auxiliary task's loss; the target's is 1"),
    ),
    points=(
        Point("uncertainty", {"multitask.weighting": "uncertainty"}, "Kendall et al. 2018: learnt loss scales"),
        Point("light", {"multitask.epochs": 2, "multitask.weight": 0.3}, "auxiliary tasks as a short warm-up"),
        Point("proportional", {"multitask.epochs": 10, "multitask.mixing": "proportional"},
              "long pre-training, large tasks first"),
    ),
)
# fmt: on
