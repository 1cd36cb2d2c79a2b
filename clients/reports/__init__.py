"""What a hospital's people read after a run.

Trust: site only.
"""
