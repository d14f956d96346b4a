"""From a question and its space to an answer: plans priced, explained, and what would help where none fits."""
