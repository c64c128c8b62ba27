"""The Hydra configuration, shipped as the package harness.conf."""
