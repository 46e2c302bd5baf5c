"""What a pipeline will take on a cluster: rates of runs that were measured, and the arithmetic from them.

`rates` holds them, `measure` tells them from artifacts, `nodes` places workers, `work` reads what a pipeline asks for,
`estimate` computes, `table` prints.
"""
