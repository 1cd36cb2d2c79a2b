"""A hospital's patients: its table as the agreed schema says, what is held out, and the public data sets.

Trust: site only, and whoever runs a simulation. No key is known here.
"""
