"""Small adapters to other people's frameworks; each module needs the package it is named after."""
