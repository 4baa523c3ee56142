"""What convert.tensorrt is made of: the linter, the typed graph, quantisation, and the gate that builds without a GPU."""
