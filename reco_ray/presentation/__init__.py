"""Output for people: the terminal, and HTML pages from templates."""
