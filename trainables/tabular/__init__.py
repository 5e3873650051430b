"""Models of tables: numbers that say what a crystal is, and ridge regression and trees that learn from them."""
