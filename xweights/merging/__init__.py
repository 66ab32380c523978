"""Many targets into one: averages, interpolations, task vectors.

The modules, lower ones first:

    streams     the entries of one parameter, block by block, as often as a method asks
    ranks       which magnitude is the k-th smallest, of a stream
    means       methods that are weighted sums: average, lerp, slerp, ema, model_stock
    dropping    which entries of a task vector are dropped
    vectors     methods that add task vectors to a base: task_arithmetic, ties, dare, della, breadcrumbs
    table       the methods by name, with their options
    settings    what a caller asks for, per parameter
    groups      one parameter of the result, and each target's share in it
    sides       the targets, each with its names
    fitting     whether the members of a group fit together
    pairing     which parameters of the targets belong together
    working     the merging of one parameter
    results     where merged entries go
    joining     merge
"""
