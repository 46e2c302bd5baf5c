"""Dense encoders, a module per family; its name is what comes before the colon of a spec."""
