"""What people read: the terminal, and pages made of templates."""
