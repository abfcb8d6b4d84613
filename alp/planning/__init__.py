"""What a grid takes before it starts: ``alp plan``."""
