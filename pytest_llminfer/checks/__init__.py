"""Pure functions from observations and expectations to a verdict. They know no engine, no pytest and no file."""
