"""What the score-identity target buys on a data set: measures, tables and plots."""
