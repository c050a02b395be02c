"""The machine that measures: GPUs, memory, versions, one lock for each GPU."""
