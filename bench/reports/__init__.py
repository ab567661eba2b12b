"""Turn records into pages, tables, differences and recommendations."""
