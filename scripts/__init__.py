"""What a person types: the command `cipherward`, one package for each kind of user.

Trust: a hospital's commands are in `site` and `prediction`, the provider's in `provider` and `prediction`; whoever
types `simulation`, `study`, `local` or `benchmarks` runs all parties on one machine, which by its nature sees them all.
"""
