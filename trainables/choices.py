"""Choices about how a run executes, which are no part of its result."""

from typing import Literal

Compile = Literal["auto", "on", "off"]
Device = Literal["auto", "cpu", "cuda"]
PresetName = Literal["auto", "single", "blend"]  # search_spaces.presets
