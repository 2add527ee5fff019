"""Reading, writing and listing of files on local disks and in object storage, under one set of functions.

URIs and bytes come in. Bytes, listings and leases go out; a lease decides which of several processes may write a
target. The door is `__all__`.
"""
