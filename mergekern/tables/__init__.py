"""Tables: metrics of all pairs with their notes, and of groups of models; from statistics, without weights."""
