"""One dimension of a search space: a range or choices, how it is asked for, and what can be wrong with it."""

import json
import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, Final, Literal, Protocol

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from trainables.config import RunConfig, dotted_names
from trainables.data.tasks import Task

Values = tuple[Any, ...] | Literal["nonzero"]


class Leave(Enum):
    """The value of a dimension that is not in use and says nothing else: the base's."""

    LEAVE = "the base's value"


LEAVE: Final = Leave.LEAVE


class Asked(Protocol):
    """What `suggest` needs of a trial."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = ...) -> float:
        """Return a number of a range."""

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = ...) -> int:
        """Return a whole number of a range."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Return one of the choices."""


@dataclass(frozen=True)
class Draws:
    """Suggests at random, the ends of ranges often."""

    generator: random.Random

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Return a number of a range."""
        share = min(1.0, max(0.0, self.generator.uniform(-0.1, 1.1)))
        value = math.exp(math.log(low) + share * math.log(high / low)) if log else low + share * (high - low)
        return min(high, max(low, value))

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """Return a whole number of a range."""
        return round(self.suggest_float(name, low, high, log=log))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Return one of the choices."""
        return self.generator.choice(list(choices))


@dataclass(frozen=True)
class Dimension:
    """One thing that varies: a range or choices.

    Attributes:
        key: dotted key of RunConfig, or a label where each choice sets several keys.
        choices: values, or names with their values where Optuna cannot hold the value (a list of parts) or one name
            stands for several keys (then the value is a mapping of dotted keys).
        zero: an exact 0 beside the range, drawn by a parameter of its own, "KEY on".
        when: in use where ANY of these earlier dimensions has one of these values (a choice's name), or is not 0.
        otherwise: what the key is set to where the dimension is not in use.
        tasks: the targets it makes sense for.
        description: one phrase for the table.
    """

    key: str
    low: float | int | None = None
    high: float | int | None = None
    log: bool = False
    integer: bool = False
    choices: tuple[Any, ...] | Mapping[str, Any] | None = None
    zero: bool = False
    when: Mapping[str, Values] = field(default_factory=dict)
    otherwise: Any = LEAVE
    tasks: Literal["all", "energies", "properties"] = "all"
    description: str = ""

    @property
    def sets(self) -> tuple[str, ...]:
        """The keys of RunConfig that it may set."""
        options = list(self.choices.values()) if isinstance(self.choices, Mapping) else []
        several = [option for option in options if isinstance(option, Mapping)]
        return tuple(dict.fromkeys(key for option in several for key in option)) if several else (self.key,)

    @property
    def joint(self) -> bool:
        """True where it is about training on auxiliary tasks."""
        return bool(self.sets) and all(key.startswith("multitask.") for key in self.sets)

    def suits(self, task: Task) -> bool:
        """Return whether the dimension makes sense for a task."""
        return self.tasks == "all" or (self.tasks == "energies") == task.is_energy

    def in_use(self, chosen: Mapping[str, Any]) -> bool:
        """Whether it is, given the values of the dimensions before it."""
        return not self.when or any(
            key in chosen and (chosen[key] != 0 if wanted == "nonzero" else chosen[key] in wanted)
            for key, wanted in self.when.items()
        )

    def ask(self, trial: Asked) -> Any:
        """Return a value (of choices with names: the name)."""
        if self.choices is not None:
            return trial.suggest_categorical(self.key, tuple(self.choices))
        if self.zero and not trial.suggest_categorical(f"{self.key} on", (False, True)):
            return 0 if self.integer else 0.0
        low, high = self._bounds()
        if self.integer:
            return trial.suggest_int(self.key, int(low), int(high), log=self.log)
        return trial.suggest_float(self.key, low, high, log=self.log)

    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's distribution of each parameter that `ask` may ask for."""
        if self.choices is not None:
            return {self.key: CategoricalDistribution(tuple(self.choices))}
        low, high = self._bounds()
        span: BaseDistribution = (
            IntDistribution(int(low), int(high), log=self.log)
            if self.integer
            else FloatDistribution(low, high, log=self.log)
        )
        return ({f"{self.key} on": CategoricalDistribution((False, True))} if self.zero else {}) | {self.key: span}

    def parameters(self, value: Any) -> dict[str, Any]:
        """Return the Optuna parameters that give this value."""
        switch = {f"{self.key} on": value != 0} if self.zero else {}
        return switch if self.zero and value == 0 else {**switch, self.key: value}

    def changes(self, value: Any) -> dict[str, Any]:
        """Dotted changes for this value or name, as JSON holds them."""
        named = isinstance(self.choices, Mapping) and isinstance(value, str) and value in self.choices
        found = plain(self.choices[value]) if named else plain(value)  # type: ignore[index]
        return found if isinstance(found, dict) else {self.key: found}

    def admit(self, value: Any) -> Any:
        """Return the value (or name) as `ask` would give it.

        Raises:
            ValueError: it is outside the dimension.
        """
        if self.choices is None and isinstance(value, int | float) and not isinstance(value, bool):
            low, high = self._bounds()
            if low <= value <= high or (self.zero and value == 0):
                return int(value) if self.integer else float(value)
        elif isinstance(self.choices, Mapping):
            names = [name for name, option in self.choices.items() if value == name or same(option, value)]
            if names:
                return names[0]
        else:
            for option in self.choices or ():
                if same(option, value):
                    return option
        raise ValueError(f"{self.key}={word(value)} is outside {self.range_in_words()}")

    def value_in(self, base: Mapping[str, Any]) -> Any:
        """Return the value (or name) that a configuration, given by dotted keys, has.

        Raises:
            ValueError: it is outside the dimension.
        """
        if self.key in base:
            return self.admit(base[self.key])
        options = self.choices if isinstance(self.choices, Mapping) else {}
        for name, several in options.items():
            if isinstance(several, Mapping) and all(same(base.get(key), value) for key, value in several.items()):
                return name
        here = ", ".join(f"{key}={word(base.get(key))}" for key in self.sets)
        raise ValueError(f"{here} is none of {self.key}'s choices ({self.range_in_words()})")

    def range_in_words(self) -> str:
        """Return the range as the table of a space shows it."""
        if self.choices is not None:
            return ", ".join(word(choice) for choice in self.choices)
        notes = [", whole"] * self.integer + [", log"] * self.log + [", or 0"] * self.zero
        return f"{word(self.low)} .. {word(self.high)}{''.join(notes)}"

    def describe(self) -> dict[str, Any]:
        """All that decides what is asked for, as JSON holds it; the order of choices and conditions counts."""
        content = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "description"}
        if isinstance(self.choices, Mapping):
            content["choices"] = [[name, option] for name, option in self.choices.items()]
        if self.otherwise is LEAVE:
            del content["otherwise"]
        return {name: plain(value) for name, value in content.items()}

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with it by itself."""
        if self.tasks not in ("all", "energies", "properties"):
            yield f"{self.key}: tasks={self.tasks!r}: expected all, energies or properties"
        if self.choices is None:
            yield from (f"{self.key}: {problem}" for problem in self._range_problems())
        else:
            yield from (f"{self.key}: {problem}" for problem in self._choice_problems())

    def _range_problems(self) -> Iterator[str]:
        if self.low is None or self.high is None:
            yield "neither a range (low and high) nor choices"
            return
        for name, bound in (("low", self.low), ("high", self.high)):
            if not isinstance(bound, int | float) or isinstance(bound, bool) or not math.isfinite(bound):
                yield f"{name}={bound!r}: a number was expected"
                return
            if self.integer and int(bound) != bound:
                yield f"{name}={word(bound)} is not a whole number, but integer is set"
        if self.low >= self.high:
            yield f"low={word(self.low)} is not below high={word(self.high)}"
        if self.log and self.low <= 0:
            yield f"a log range requires low above 0, got {word(self.low)} (zero: true adds an exact 0)"
        elif self.zero and self.low <= 0:
            yield f"zero adds an exact 0 to a range above 0, but low={word(self.low)}"

    def _choice_problems(self) -> Iterator[str]:
        if self.low is not None or self.high is not None or self.log or self.integer or self.zero:
            yield "both a range (low, high, log, integer, zero) and choices"
        if not isinstance(self.choices, tuple | Mapping) or not self.choices:
            yield "choices need at least one value (in Python: a tuple, or a mapping of names)"
        elif not isinstance(self.choices, Mapping):
            if not all(option is None or isinstance(option, str | int | float) for option in self.choices):
                yield "choices that are not plain values need names: use a mapping of names to values"
            if max(Counter(map(repr, self.choices)).values()) > 1:
                yield "a choice stands twice"
        else:
            if not all(isinstance(name, str) for name in self.choices):
                yield "names of choices must be text: quote on, off, yes, no and numbers"
            if len({isinstance(option, Mapping) for option in self.choices.values()}) > 1:
                yield "either all choices set several keys, or none"

    def _bounds(self) -> tuple[float, float]:
        if self.low is None or self.high is None:
            raise ValueError(f"{self.key}: neither a range (low and high) nor choices")
        return self.low, self.high


def plain(value: Any) -> Any:
    """Return the value as it comes back from JSON."""
    return json.loads(json.dumps(value, default=str))


def same(one: Any, other: Any) -> bool:
    """Equal as JSON: True is not 1, and a tuple is a list."""
    return plain(one) == plain(other) and isinstance(one, bool) == isinstance(other, bool)


def word(value: Any) -> str:
    """Return a value for people: 1e-4, none, true."""
    if isinstance(value, float) and value != 0 and (abs(value) < 1e-2 or abs(value) >= 1e5) and math.isfinite(value):
        digits, power = f"{value:e}".split("e")
        return f"{float(digits):g}e{int(power)}"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def flat(config: RunConfig) -> dict[str, Any]:
    """Every dotted key with its value, as JSON holds it; keys that are empty mappings have none."""
    found = {}
    content = config.model_dump(mode="json")
    for key in dotted_names():
        section, _, name = key.rpartition(".")
        values = content[section] if section else content
        own = getattr(getattr(config, section) if section else config, name)
        if name in values or own != {}:
            found[key] = values.get(name, own)  # what is off is left out of a configuration's JSON
    return found
