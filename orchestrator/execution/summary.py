"""What a model's run reported, as it stands in done.json."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

_FITTED = {"best_val_mae", "best_epoch", "compiled", "before"}  # of a model that was trained, not averaged


class RunSummary(BaseModel):
    """What became of one model.

    Attributes:
        reason: why it failed; empty when it finished.
        structures: processed in training; none for an average of weights.
        seconds: of training.
        best_val_mae: of the kept epoch, in the task's unit; None where nothing validated it.
        history: a line an epoch of the training that chose the model, and of its refit.
        before: the same of joint training.
        cannot_write: it failed because its files could not be written, as any other would.
        halved_batches: memory ran out once, and less was computed at a time from there on.
        sha256: of the run's other files, by name; runs of older versions have none.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    status: Literal["finished", "failed"]
    reason: str
    structures: int = 0
    seconds: float = 0.0
    structures_per_s: float = 0.0
    best_epoch: int | None = None
    best_val_mae: float | None = None
    history: list[dict[str, Any]] = []
    before: list[dict[str, Any]] = []
    compiled: bool | None = None
    device: str | None = None
    versions: dict[str, str] | None = None
    threads: int | None = None
    tf32: bool | None = None
    halved_batches: bool = False
    cannot_write: bool = False
    sha256: dict[str, str] = {}

    @model_validator(mode="after")
    def _is_whole(self) -> "RunSummary":
        wanted = {"structures", "seconds", "structures_per_s"} if self.status == "finished" else set()
        wanted |= _FITTED if "history" in self.model_fields_set else set()
        if missing := wanted - self.model_fields_set:
            raise ValueError(f"lacks {', '.join(sorted(missing))}")
        return self

    @classmethod
    def failure(cls, reason: str, *, cannot_write: bool = False) -> "RunSummary":
        """Return the summary of a run that failed."""
        return cls(status="failed", reason=reason, cannot_write=cannot_write)

    @property
    def failed(self) -> bool:
        """Return whether the run failed."""
        return self.status == "failed"

    def with_fields(self, **values: Any) -> "RunSummary":
        """Return a copy with these fields set."""
        return RunSummary.model_validate(self.content() | values)

    def content(self) -> dict[str, Any]:
        """Return the content of done.json."""
        return self.model_dump(mode="json", exclude_unset=True)
