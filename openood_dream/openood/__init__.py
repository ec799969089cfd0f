"""Everything that knows OpenOOD, and the only place that imports it.

`registry` makes OpenOOD know what is ours, `host` runs its pipelines, `cache` serves its postprocessors from passes on
disk, `compat` makes OpenOOD 1.5 work on today's libraries.
"""
