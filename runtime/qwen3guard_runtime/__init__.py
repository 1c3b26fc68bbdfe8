"""What the Python models in the Triton repository are made of."""
