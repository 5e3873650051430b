"""What a table's rows say about themselves, before anything is trained on them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Unpack

import pandas as pd

from crystaltune._rows import Data, RowOptions, reject_unknown_keywords, shown, source_of
from trainables.progress import Progress

if TYPE_CHECKING:
    from trainables.data.findings import Finding


@dataclass(frozen=True)
class Check:
    """What is in the rows, and what should be known of them.

    Attributes:
        facts: how many rows, atoms and elements there are, and how the target is distributed; in words.
        findings: errors, which have to be corrected first, then warnings, then notes; each has `level`, `text`, `ids`
            of the rows that it is about (none: all) and `cure`.
    """

    facts: dict[str, str]
    findings: "tuple[Finding, ...]"

    @property
    def ok(self) -> bool:
        """Return whether the rows can be trained on."""
        return not any(each.level == "error" for each in self.findings)

    @property
    def table(self) -> pd.DataFrame:
        """Return the findings as a table: level, text, cure, ids."""
        columns = ["level", "text", "cure", "ids"]
        return pd.DataFrame(
            [[each.level, each.text, each.cure, list(each.ids)] for each in self.findings], columns=columns
        )

    def __repr__(self) -> str:
        told = [f"{name}: {value}" for name, value in self.facts.items()]
        told += [f"{each.level}: {each.text}" + (f" ({each.cure})" if each.cure else "") for each in self.findings]
        return "\n".join(told or ["nothing stands in the way"])

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        from html import escape

        facts = "".join(f"<li>{escape(name)}: {escape(value)}</li>" for name, value in self.facts.items())
        return f"<ul>{facts}</ul>{self.table.to_html(index=False)}"


def check(data: Data, *, progress: bool | Progress = True, **options: Unpack[RowOptions]) -> Check:
    """Look at rows before training, as `train` does when it begins.

    Args:
        data: as for `train`, with its keywords about rows.

    Raises:
        UserError: nothing that can be read.
    """
    from orchestrator.inputs.datasets import facts_of, look_at

    reject_unknown_keywords(check, options, RowOptions)
    source = source_of(data, options)
    with shown(progress) as bars:
        dataset, found = look_at(source, bars)
    return Check({} if dataset is None else facts_of(dataset), tuple(found))
