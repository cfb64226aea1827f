"""Read-only over everything else: tables, the manifest, method pages, explanations."""
