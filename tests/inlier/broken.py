"""A plug-in that cannot be imported."""

raise RuntimeError("at import")
