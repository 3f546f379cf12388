"""The public API: every step as a typed function; `import terraseg` gives them all."""
