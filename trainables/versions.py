"""Versions of the code that decide what is computed; fingerprints and cache addresses contain them."""

CONVERTER_VERSION = 5  # part of every store's address: raise it when the arrays of graphs.convert change
TRAINING_VERSION = 2  # raise it when the same RunConfig starts to give other numbers
FEATURES_VERSION = 1  # of the numbers that models of tables learn from
