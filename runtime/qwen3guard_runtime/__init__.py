"""The library that the Python models in the Triton repository are built from."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # from 1.29 on, ONNX Runtime sends events to Microsoft by default
