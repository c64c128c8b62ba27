"""First contact with a machine that has GPUs: `make gpu-contact`."""
