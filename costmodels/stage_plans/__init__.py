"""Plans whose stages differ, priced by look-ups of what their distinct stages cost."""
