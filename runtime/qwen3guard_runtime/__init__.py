"""The library that the Python models in the Triton repository are built from."""
