"""The database: the only writer of it, its tables, and what it hands out."""
