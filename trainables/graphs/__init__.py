"""Structure to packed arrays to batch."""
