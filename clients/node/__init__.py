"""The process that a hospital runs: it takes messages from Flower's SuperNode, and has each answered in a child.

Trust: site only. What comes in is the provider's bytes.
"""
