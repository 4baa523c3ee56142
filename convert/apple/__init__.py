"""What is particular to Core ML: packages, their compression, attention for the Neural Engine, advice about it."""
