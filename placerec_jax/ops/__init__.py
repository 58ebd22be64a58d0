"""Pure functions: geometry, projection, pooling, transport."""
