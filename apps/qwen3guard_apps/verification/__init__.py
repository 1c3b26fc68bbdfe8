"""The evidence for a checkpoint's exports: each format beside fp32, and beside transformers, on texts of this room and
of the user."""
