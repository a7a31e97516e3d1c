"""From decoded photos to answers: versions, batches, admission."""
