"""The best setting as files: JSON, ``serve.sh``, ``compose.yaml``, reports."""
