"""Measurement: times, weighs and compares bundles, and writes one report for each. Makes no model of its own."""
