"""Read, write and edit weight files: `load`, `save`, `convert`, `edit_file`, and one module per format."""
