"""The prediction service: computes on encrypted records, and on plain or encrypted models.

Trust: runs at the provider. No secret key can exist here; what it knows of a plain model it was given in plaintext.
"""
