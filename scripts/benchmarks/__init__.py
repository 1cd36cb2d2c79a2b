"""What things cost: `cipherward bench`.

Trust: runs on one machine, on keys and models made for it.
"""
