"""Conversion: a checkpoint becomes a bundle for one runtime, target and precision, checked against PyTorch as it is made."""
