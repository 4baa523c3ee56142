"""PyTorch's side of the contracts: the reference networks, the reference runtime and MAC counting. The one place in
`kdc_edge` that imports torch; nothing on a device imports it."""
