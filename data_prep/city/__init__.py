"""The built-in city: a procedural town written in the raw formats of real datasets."""
