"""Post-training quantisation algorithms, one file each."""
