"""Frozen models behind small functions."""

import os

# ONNX Runtime would send what it is used for to its makers, and write an id of this machine into the home folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
