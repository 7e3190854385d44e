"""Pictures, captions and concepts. Knows no model."""
