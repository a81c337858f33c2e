"""What lies at `base.path`: a folder, one file or a hub id, of which family, read from headers.

Nothing here loads weights or imports torch, so a wrong file is refused before anything starts.
"""
