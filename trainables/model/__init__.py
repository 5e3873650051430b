"""CHGNet over packed batches: weights, energy path, heads, reference."""
