"""The run-time type checker that tests apply to every annotated tensor function.

Shapes and dtypes in the signatures of layers, losses, adapters and objectives are checked at each
call, so a wrong annotation fails a test.
"""

from beartype import BeartypeConf, beartype

# An int is accepted where a float is annotated, as every static checker does (PEP 484).
typechecked = beartype(conf=BeartypeConf(is_pep484_tower=True))
