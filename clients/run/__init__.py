"""A hospital's part in one run: what it pinned, the opening, the rounds, where it stands, and what it keeps.

Trust: site only. Every message of the provider's is answered here.
"""
