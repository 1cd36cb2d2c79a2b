"""All that holds or uses a secret key in training: identities, run keys, CKKS, sealing, release; and the vault.

Trust: site only. Code outside this package gets keys as opaque objects.
"""
