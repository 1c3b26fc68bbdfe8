"""Measures a guard on labelled rows: asks the guard, computes the measures as pure functions, and writes a report."""
