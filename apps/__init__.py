"""Thin demonstrations over kdc_edge: what an application looks like, and nothing a library should hold."""
