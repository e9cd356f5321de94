"""What the chapters run on, and how it was made: worlds, recipes, weights, data sets, facts of the papers."""
