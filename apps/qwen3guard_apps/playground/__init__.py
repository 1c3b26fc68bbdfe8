"""One local page that shows a guard at work."""
