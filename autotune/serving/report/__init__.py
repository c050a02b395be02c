"""What the page, the plots and the tables of a ``spec`` study show."""
