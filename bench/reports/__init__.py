"""Records become pages, tables, comparisons and recommendations."""
