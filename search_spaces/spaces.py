"""The search spaces by name. A new one is a file with a SPACE and one line here."""

from search_spaces import budget, distil, full, multitask, optim, ssa, tta
from search_spaces.space import Space

SPACES: dict[str, Space] = {
    space.name: space
    for space in (
        ssa.SPACE,
        optim.SPACE,
        budget.SPACE,
        multitask.SPACE,
        full.SPACE,
        distil.SPACE,
        tta.SPACE,
    )
}
