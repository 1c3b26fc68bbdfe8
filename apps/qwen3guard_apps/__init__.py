"""What people do with a served guard: annotate and evaluate data, guard an LLM, watch a stream, check an installation.

Most of it knows the client alone. `cli` is the command line on top, and knows every other package; `doctor` knows the
server, the runtime and the export too, whose work it checks.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # from 1.29 on, ONNX Runtime sends events to Microsoft by default
