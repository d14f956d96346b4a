"""Plans for serving: deployments of a model, what each one holds and how fast it answers."""
