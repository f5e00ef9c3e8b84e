"""Output made from results: tables, cards, figures from papers."""
