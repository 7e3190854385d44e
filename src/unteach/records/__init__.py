"""Every artefact that is written and read back, as a versioned record. Knows no model, no data and no method."""
