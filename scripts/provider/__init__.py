"""What the provider's people type: `cipherward provider`, `submit` and `logs`.

Trust: provider only.
"""
