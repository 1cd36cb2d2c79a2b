"""Cross-validation of an experiment: `cipherward study`.

Trust: sees everything: provider and all sites are this process.
"""
