"""Photos to Arrow blocks: sources, the decoder, the split and the ledger of every file."""
