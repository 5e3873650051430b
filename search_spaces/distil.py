"""Distillation: how much a student listens to its teachers, to which of their labels, and how wide it is.

All trials share their teachers, which are trained once: nothing that a teacher is made of varies here (the teachers of
a run are the same run without teachers, at full width).
"""

from search_spaces.space import Dimension, Point, Space

# fmt: off
SPACE = Space(
    name="distil",
    description="share and weighting of the teachers' labels, and the student's width",
    fixed={"distil.teacher_start": "0.3.0"},
    dimensions=(
        Dimension("distil.weight", 0.05, 1.0, zero=True, description="share of the teachers' labels in the loss"),
        Dimension("distil.weighting", choices=("none", "noise", "hardness"), when={"distil.weight": "nonzero"},
                  description="rows of large disagreement count less (noise) or more (hardness)"),
        Dimension("distil.temperature", 0.1, 10.0, log=True, when={"distil.weighting": ("noise", "hardness")},
                  description="of that weighting; large: all rows alike"),
        Dimension("student", description="lite: half as wide, from scratch", choices={
            "full": {"model.width": 64},
            "lite": {"model.width": 32, "model.start": "scratch"},
        }),
    ),
    points=(
        Point("E4", {"distil.weight": 0.5}, "the ladder's student"),
        Point("born again", {"distil.weight": 1.0}, "Furlanello et al. 2018: the teachers' labels alone"),
        Point("noise", {"distil.weight": 0.5, "distil.weighting": "noise", "distil.temperature": 1.0},
              "where teachers disagree, trust the label"),
        Point("lite student", {"distil.weight": 0.9, "student": "lite"}, "Hinton et al. 2015: mostly soft targets"),
    ),
)
# fmt: on
