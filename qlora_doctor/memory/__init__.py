"""What a 4-bit run takes in memory, from the model's config.json alone: shapes, the estimate, and the search for what fits."""
