"""Adapters that put q4 into other packages, one file each. Each imports its package; q4 itself imports none of them."""
