"""Callbacks for the trainers of others; each module imports the one it is named after."""
