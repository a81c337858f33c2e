"""Facts of the files at `base.path` (folder, single file or hub id), read from their headers.

Nothing here loads weights or imports torch, so a wrong file is refused before anything starts.
"""
