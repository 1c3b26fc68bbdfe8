"""Small adapters to other frameworks; each module needs the package of that framework."""
