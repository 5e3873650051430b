"""Everything that training has: perturbations, the optimiser, and (with auxiliary tasks) joint training.

Two spaces are left out. `tta` needs no training: search it afterwards on the winner, where a trial takes seconds.
`distil` would want new teachers for every trial, because teachers are trained as the student is.
"""

from dataclasses import replace

from search_spaces import multitask, optim, ssa
from search_spaces.space import Dimension, Point, Space

# fmt: off
_JOINT = Dimension("joint training", choices={"off": {"multitask.tasks": []}, "on": {}},
                   description="with the auxiliary tasks, where there are any")
# fmt: on

SPACE = Space(
    name="full",
    description="ssa, optim and, with auxiliary tasks, multitask together",
    fixed=ssa.SPACE.fixed,
    auxiliary="optional",
    dimensions=(
        *ssa.SPACE.dimensions,
        *optim.SPACE.dimensions,
        _JOINT,
        *(replace(each, when=each.when or {_JOINT.key: ("on",)}) for each in multitask.SPACE.dimensions),
    ),
    points=(
        *ssa.SPACE.points,
        *optim.SPACE.points,
        Point("alone", {_JOINT.key: "off"}, "without the auxiliary tasks"),
        *multitask.SPACE.points,
    ),
)
