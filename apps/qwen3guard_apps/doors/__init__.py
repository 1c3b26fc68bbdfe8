"""The APIs that the proxy guards: each translates its requests and answers into those of chat completions, and back."""
