"""The rails as flows in Colang 1.0."""

from __future__ import annotations

NAMES = ("input", "output", "tool_output", "tool_input")
_REFUSAL = """
define bot refuse what is unsafe
  "I cannot answer that."
"""
_FLOW = """
define subflow qwen3guard check {flow}
  $allowed = execute qwen3guard_check_{name}
  if not $allowed
    bot refuse what is unsafe
    stop
"""
FLOWS = _REFUSAL + "".join(_FLOW.format(flow=name.replace("_", " "), name=name) for name in NAMES)
"""For `rails: {input: {flows: [qwen3guard check input]}, output: {flows: [qwen3guard check output]},
tool_output: {flows: [qwen3guard check tool output]}}`, and `tool_input` likewise."""
