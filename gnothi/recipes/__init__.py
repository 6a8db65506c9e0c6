"""Settings of runs: recipes by name, rules for what nobody set, strict loading."""
