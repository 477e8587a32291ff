"""One line: triggers, views, the deciding thread and what it tells."""
