"""Everything that knows OpenOOD: registration in its factories, its pipelines behind our command, compatibility.

`register()` makes OpenOOD know what is ours, `run(config)` runs its pipelines, `compat` makes OpenOOD 1.5 work here.
"""

from openood_dream.openood.host import run, status, wanted
from openood_dream.openood.registry import register, unregister

__all__ = ["register", "run", "status", "unregister", "wanted"]
