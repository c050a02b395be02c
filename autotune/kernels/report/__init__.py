"""What the page, the plots and the tables of a ``moe`` study show."""
