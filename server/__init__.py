"""The provider: runs the rounds and keeps what it saw.

Trust: no secret key can exist here. `clients` is never imported.
"""
