"""Saved Core ML programs, executed operator by operator with torch on any system.

`container` reads and checks the package, `program` walks its operators, `operators` and `weights` are tables of what they
do, `report` says where the numbers overflow and where they leave a reference. It says nothing of what Core ML's own
kernels give, nor of their speed.
"""
