"""Device memory of training: what a rank keeps, part by part, and the peak of its stage."""
