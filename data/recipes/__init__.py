"""How each family of organisms is made: a module a family, with a dictionary `RECIPES`."""
