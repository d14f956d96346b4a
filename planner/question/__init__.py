"""From what a user writes to a question that can be priced: model, machines, job, pins."""
