"""Pipeline schedules: what stages do in which order, how long a step of them takes, and what they hold."""
