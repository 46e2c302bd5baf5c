"""Estimates the time and storage of a pipeline on a cluster from the rates of measured runs.

`rates` defines rates, `measured_rates` computes them from artifacts, `nodes` places workers, `workload` reads a
pipeline, `estimate` computes, `estimate_table` formats.
"""
