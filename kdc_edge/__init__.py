"""Text to image on the device: bundles, runtimes, samplers and every contract the stages share. No torch, no network.

from kdc_edge import Pipeline

with Pipeline.open() as pipe:
    pipe.generate("red apple", seed=3).save("apple.png")
"""

from kdc_edge.bundle import Bundle
from kdc_edge.checkpoint import Checkpoint
from kdc_edge.errors import BundleError, GateError, KdcError, MissingBackend, ResourceError, UsageError
from kdc_edge.pipeline import Frame, Pipeline, Timings
from kdc_edge.runtimes import Options, Runtime

__version__ = "0.1.0"

__all__ = [
    "Bundle",
    "BundleError",
    "Checkpoint",
    "Frame",
    "GateError",
    "KdcError",
    "MissingBackend",
    "Options",
    "Pipeline",
    "ResourceError",
    "Runtime",
    "Timings",
    "UsageError",
]
