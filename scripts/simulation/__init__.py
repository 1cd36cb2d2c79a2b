"""A whole federation in one run on this machine, its summary, and its plaintext twin.

Trust: sees everything: provider and all sites are this machine.
"""
