"""The demo: real text that every machine has, searched by meaning through SQL."""
