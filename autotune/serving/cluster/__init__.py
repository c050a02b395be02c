"""Servers on the nodes of a cluster: one measurer on each node, and the driver that asks them."""
