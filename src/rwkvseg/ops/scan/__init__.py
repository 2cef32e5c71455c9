"""The Triton form of the selective scan of `rwkvseg.ops.selective_scan`; operators.py registers it."""
