"""Networks that are trained on pseudo-labels; a module per family, its name is what precedes the colon of a spec."""
