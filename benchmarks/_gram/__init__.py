"""The parts of gram.py, one file a section."""
