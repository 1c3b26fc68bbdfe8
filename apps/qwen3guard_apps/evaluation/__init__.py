"""The measures of a guard on labelled rows: pure functions on arrays, and a report made of them."""
