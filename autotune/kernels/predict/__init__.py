"""The predicted mode: a cost model over compiled kernels. Nothing here is measured."""
