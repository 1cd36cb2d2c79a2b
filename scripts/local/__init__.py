"""A deployed federation on this machine, to try it: `cipherward local`.

Trust: sees everything.
"""
