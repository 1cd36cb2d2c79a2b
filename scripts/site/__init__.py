"""What a hospital's people type: `cipherward site` and `cipherward agreement`.

Trust: site only.
"""
