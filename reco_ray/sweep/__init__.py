"""Many settings tried side by side, ranked by labels where there are any, else by scores that need none."""
