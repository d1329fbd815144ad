"""Questions with known answers, and how they are put to a model."""
