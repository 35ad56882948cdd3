"""From an exported model to a DataFrame column."""
