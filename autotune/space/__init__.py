"""Search spaces and published figures, read from ``search_spaces/``."""
