"""Colours of the report pages, each for a light and a dark page; pictures are drawn in the light ones."""

import re

import matplotlib as mpl
from matplotlib.colors import to_hex

INK, GREY, LINE, GRID, PAGE = "#1f2328", "#57606a", "#a9b1ba", "#e5e7eb", "#ffffff"
GREEN, RED, BLUE, AMBER = "#1a7f37", "#b42318", "#0969da", "#9a6700"
PURPLE, TEAL, PINK = "#8250df", "#0f766e", "#bf3989"
SERIES = (BLUE, PURPLE, AMBER, TEAL, PINK)  # of lines that mean neither better nor worse
_STEPS = 9  # of the scale


def _scale(first: float, last: float) -> list[str]:
    """Viridis, from the colour that stands out most from the page."""
    shares = [first + (last - first) * step / (_STEPS - 1) for step in range(_STEPS)]
    return [to_hex(mpl.colormaps["viridis"](share)) for share in shares]


_SCALE = _scale(0.0, 0.58)
PALETTE: dict[str, tuple[str, str]] = {
    "ink": (INK, "#e6edf3"),
    "grey": (GREY, "#9ba6b2"),
    "line": (LINE, "#59626d"),
    "grid": (GRID, "#2b323b"),
    "page": (PAGE, "#0d1117"),
    "code": ("#f6f8fa", "#161b22"),
    "shade": ("#a0a8b0", "#6e7681"),
    "green": (GREEN, "#3fb950"),
    "red": (RED, "#ff7b72"),
    "blue": (BLUE, "#58a6ff"),
    "amber": (AMBER, "#d29922"),
    "purple": (PURPLE, "#bc8cff"),
    "teal": (TEAL, "#2dd4bf"),
    "pink": (PINK, "#f778ba"),
    **{f"scale{step}": pair for step, pair in enumerate(zip(_SCALE, _scale(1.0, 0.38), strict=True))},
}
_VARIABLES = {light: f"var(--{name})" for name, (light, _) in PALETTE.items()} | {"#000000": "var(--ink)"}


def scale_colour(share: float) -> str:
    """Colour of a share from 0 (stands out most) to 1."""
    return _SCALE[round(min(1.0, max(0.0, share)) * (_STEPS - 1))]


def css_variables() -> str:
    """CSS that defines each colour: dark on a screen whose reader prefers that, light everywhere else."""
    light, dark = ("".join(f" --{name}: {pair[k]};" for name, pair in PALETTE.items()) for k in (0, 1))
    return f":root {{ color-scheme: light;{light} }}\n" + (
        f"@media screen and (prefers-color-scheme: dark) {{\n:root {{ color-scheme: dark;{dark} }}\n}}\n"
    )


def following_page(drawn: str) -> str:
    """The SVG with the colours of the palette replaced by the page's variables."""
    return re.sub(r"#[0-9a-f]{6}\b", lambda found: _VARIABLES.get(found[0], found[0]), drawn)
