"""What winnow remembers: sealed artifacts, the ledger, and the snapshot that people read."""
