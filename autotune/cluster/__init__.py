"""Work on the nodes of a Ray cluster, for every kind of tuning."""
