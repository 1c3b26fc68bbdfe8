"""How rows of a file get their verdicts: read, asked for many at once, written in order, shown as they go."""
