"""The hospital: its data, its training, its keys, and all that happens before anything leaves the house.

Trust: runs at a site, beside the patients' records. Nothing in here is ever loaded by the provider.
"""
