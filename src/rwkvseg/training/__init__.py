"""Floor 3: recipes, training, runs; the only floor that imports lightning."""
