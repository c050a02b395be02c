"""The memory that a server needs against what is free, and the search of its utilization."""
