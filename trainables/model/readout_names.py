"""What the untrained potential says of a crystal beside its features: names, in the order of their numbers."""

PHYSICS = (
    "energy", "energy of strain", "log bulk modulus", "pressure", "anharmonicity", "site energy SD",
    "lowest site energy", "highest site energy", "mean moment", "largest moment",
)  # fmt: skip
FREQUENCIES = ("highest frequency",)  # 1/cm


def readout_names(*, phonons: bool) -> tuple[str, ...]:
    """Return the read-outs that a property head may read (trainables.tabular.crystal_features computes them)."""
    return (*PHYSICS, *(FREQUENCIES if phonons else ()))
