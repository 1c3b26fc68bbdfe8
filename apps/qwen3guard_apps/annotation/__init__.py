"""How the rows of a file get their verdicts: read, judged many at once, and written in order, with a progress line."""
