"""Arithmetic on arrays: knows no model, no name and no file."""
