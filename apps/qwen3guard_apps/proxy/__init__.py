"""OpenAI's chat completions, guarded."""
