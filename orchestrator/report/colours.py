"""Colours of the report pages, each for a light and a dark page."""

INK, GREY, LINE, GRID, PAGE = "#1f2328", "#57606a", "#a9b1ba", "#e5e7eb", "#ffffff"
GREEN, RED, BLUE, AMBER = "#1a7f37", "#b42318", "#0969da", "#9a6700"
PURPLE, TEAL, PINK = "#8250df", "#0f766e", "#bf3989"

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
    "heat": ("#b6d7ff", "#1f4b7d"),
}


def css_variables() -> str:
    """CSS that defines each colour: dark on a screen whose reader prefers that, light everywhere else."""
    light, dark = ("".join(f" --{name}: {pair[k]};" for name, pair in PALETTE.items()) for k in (0, 1))
    return f":root {{ color-scheme: light;{light} }}\n" + (
        f"@media screen and (prefers-color-scheme: dark) {{\n:root {{ color-scheme: dark;{dark} }}\n}}\n"
    )
