"""`python -m kdc_edge` is `kdc-edge`."""

from kdc_edge.cli import main

main()
