"""What each training framework accepts: one named rule per condition, with where it comes from."""
