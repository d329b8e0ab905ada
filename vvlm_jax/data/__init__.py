"""From media files to batches: decode, choose frames, tokenise, mix, batch."""
