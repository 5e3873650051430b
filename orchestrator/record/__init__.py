"""The Matbench record and its submission folder."""
