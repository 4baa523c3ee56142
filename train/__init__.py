"""Training: makes the teacher and distils students from it. PyTorch throughout; nothing here runs on a device."""
