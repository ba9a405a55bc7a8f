"""Everything on a screen: progress, tables, figures."""
