"""What the server that cases are forked from imports once: it takes longer than most cases."""

import monai.inferers  # noqa: F401
import torch  # noqa: F401
import zarr.codecs  # noqa: F401
from numcodecs.blosc import Blosc

import pipelines.bench.cases  # noqa: F401

# blosc makes its lock now: it belongs to the server then, and not to a case that is killed and cannot remove it
Blosc().encode(b"0")
