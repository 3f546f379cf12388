"""Compare: experiments x label fractions x seeds as one resumable matrix, and what it says."""
