"""Model organisms: recipes and the one trainer that runs them."""
